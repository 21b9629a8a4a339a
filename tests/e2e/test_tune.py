"""`make tune` with a real engine: the baseline only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stack import REPOSITORY

# Two minutes on two idle cores; the run itself ends a candidate after ten.
LIMIT_S = 900


@pytest.mark.long
@pytest.mark.vllm
@pytest.mark.timeout(LIMIT_S + 60)
def test_the_bundled_model_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tune", "smollm2", "--quick", "--only", "baseline", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    assert "For throughput: No change that may be used is better" in done.stdout
    (line,) = (tmp_path / "results.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row["problem"] is None
    figures = row["figures"]
    assert figures["speed"]["16"] > figures["speed"]["1"] > 0
    assert 5 < figures["perplexity"] < 60
    assert figures["cached"] < figures["cold"]
    assert figures["memory"] > 500_000_000
    assert (tmp_path / "chart.svg").exists()
    assert not list(tmp_path.glob("*-bit-*")), "copies are made for their candidates only"
