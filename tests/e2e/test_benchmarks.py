"""The benchmarks run: one of them, shortly. What it measures is no test."""

from __future__ import annotations

import subprocess
import sys

from tests.support.stack import REPOSITORY


def test_the_autoscaled_fleet_runs_on_the_real_queue() -> None:
    """Workers are started and jobs run; the model's figures stand beside."""
    command = [sys.executable, "-m", "benchmarks.autoscale", "day", "real", "--quick", "--speed", "12"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=200)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    figures = {cells[1].strip(): cells[2:4] for line in ended.stdout.splitlines() if len(cells := line.split("|")) == 6}
    modelled, real = (int(value) for value in figures["jobs"])
    assert modelled == real > 50
    assert int(figures["peak workers"][1]) >= 1


def test_a_quick_run_prints_its_figures_and_ends_what_it_started() -> None:
    command = [sys.executable, "-m", "benchmarks", "--only", "submits", "--quick"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=200)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "submits/s at 64" in ended.stdout
    assert "durable submits" in ended.stdout
