"""Short runs of two benchmarks. Their results are not checked."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.stack import REPOSITORY


@pytest.mark.long
def test_the_autoscaled_fleet_runs_on_the_real_queue() -> None:
    """Workers are started and jobs run; the report also has the figures of the model."""
    command = [sys.executable, "-m", "benchmarks.autoscale", "day", "real", "--quick", "--speed", "12"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=200)
    assert result.returncode == 0, result.stdout + result.stderr
    figures = {
        cells[1].strip(): cells[2:4] for line in result.stdout.splitlines() if len(cells := line.split("|")) == 6
    }
    modelled, real = (int(value) for value in figures["jobs"])
    assert modelled == real > 50
    assert int(figures["max workers"][1]) >= 1


def test_a_quick_run_prints_its_figures() -> None:
    command = [sys.executable, "-m", "benchmarks", "--only", "submits", "--quick"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=200)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "submits/s at 64" in result.stdout
    assert "durable submits" in result.stdout
