"""No pattern takes more than linear time, whatever the text is."""

from __future__ import annotations

import pytest

from benchmarks.redaction.adversarial import NAMES, cpu_s

SHORT = 40_000
FACTOR = 8
# Linear time grows by 8, quadratic time by 64. Short runs vary, so there is some room.
MOST = 20


@pytest.mark.parametrize("name", NAMES)
def test_time_is_linear(name: str) -> None:
    short = max(cpu_s(name, SHORT), 0.0005)
    assert cpu_s(name, SHORT * FACTOR, repeats=2) < MOST * short
