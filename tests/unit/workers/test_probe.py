"""What a container's probe says of the worker beside it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from shared.domain.job import WorkerState
from workers.probe import STALE_S, main, verdict
from workers.supervision.heartbeat_file import HeartbeatFile

NOW = 1_000_000.0


@pytest.mark.parametrize(
    ("state", "age_s", "alive", "ready"),
    [
        (None, 0, False, False),
        (WorkerState.READY, 1, True, True),
        (WorkerState.READY, STALE_S + 1, False, False),
        (WorkerState.DRAINING, 1, True, False),
        (WorkerState.RESTARTING, 1, True, False),
        (WorkerState.RESTARTING, 600, True, False),  # an engine loads for minutes, and the loop with it
    ],
)
def test_verdict(tmp_path: Path, state: WorkerState | None, age_s: float, alive: bool, ready: bool) -> None:
    file = tmp_path / "worker"
    beacon = HeartbeatFile(file)
    if state is not None:
        beacon.show(state)
        os.utime(file, (NOW - age_s, NOW - age_s))
    assert (verdict("alive", file, NOW) is None) == alive
    assert (verdict("ready", file, NOW) is None) == ready


def test_a_new_worker_takes_the_old_ones_word_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "worker"
    monkeypatch.setenv("HEADRACE_BEACON", str(file))
    HeartbeatFile(file).show(WorkerState.READY)
    assert main(["ready"]) == 0
    HeartbeatFile(file)
    assert main(["alive"]) == 1


@pytest.mark.parametrize("arguments", [[], ["well"], ["alive", "ready"]])
def test_what_it_is_asked_must_be_known(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_BEACON", f"/tmp/{time.time()}")  # noqa: S108 - not written
    assert main(arguments) == 2
