"""The number of examples of property tests: few and fixed in `make test`, many and new in `make test-long`."""

from __future__ import annotations

import hypothesis

LONG = hypothesis.settings.get_current_profile_name() == "long"


def example_count(usual: int, *, long: int) -> hypothesis.settings:
    """Settings for a test with slow examples: `usual` or `long` examples, depending on the profile."""
    return hypothesis.settings(max_examples=long if LONG else usual)
