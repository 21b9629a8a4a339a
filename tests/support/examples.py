"""How many examples property tests draw: in `make test` few, the same each time; in `make test-long` many new ones."""

from __future__ import annotations

import hypothesis

LONG = hypothesis.settings.get_current_profile_name() == "long"


def drawn(usual: int, *, long: int) -> hypothesis.settings:
    """Settings of a test whose examples take longer than those of most, and which therefore has its own numbers."""
    return hypothesis.settings(max_examples=long if LONG else usual)
