"""`make soak`, briefly: it measures every part under load, and fails if a bound is exceeded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from soak.drift import Bounds, drifts
from soak.run import Plan, report, run

# In a few seconds, connections and caches are still filling up.
WIDE = Bounds(database=1_000_000, files=10_000)


@pytest.mark.timeout(90)
async def test_a_short_run(tmp_path: Path) -> None:
    lines: list[str] = []
    result = await run(Plan(8, rate=10, interval_s=0.25, bounds=WIDE), tmp_path, lines.append)
    assert result.failures == []
    assert result.jobs >= 76
    for sample in result.samples:
        assert set(sample.parts) == {"api", "flower", "postgres", "valkey", "worker"}
        assert all(part.memory > 0 and part.files > 0 for part in sample.parts.values())
    assert "bytes a job" in report(result)
    assert drifts(result.samples, replace(WIDE, database=-1))
