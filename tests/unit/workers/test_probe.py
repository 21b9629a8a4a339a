"""A container's probe checks the worker by its heartbeat file."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from shared.domain.job import WorkerState
from workers.probe import STALE_S, failure, main
from workers.supervision.heartbeat_file import HeartbeatFile

NOW = 1_000_000.0


@pytest.mark.parametrize(
    ("state", "age_s", "alive", "ready"),
    [
        (None, 0, False, False),
        (WorkerState.READY, 1, True, True),
        (WorkerState.READY, STALE_S + 1, False, False),
        (WorkerState.DRAINING, 1, True, False),
        (WorkerState.WARMING, 1, True, False),
        (WorkerState.WARMING, STALE_S + 1, False, False),
        (WorkerState.RESTARTING, 1, True, False),
        (WorkerState.RESTARTING, 600, True, False),  # an engine may load for minutes and block the loop
    ],
)
def test_checks_by_state_and_age(
    tmp_path: Path, state: WorkerState | None, age_s: float, alive: bool, ready: bool
) -> None:
    file = tmp_path / "worker"
    heartbeat_file = HeartbeatFile(file)
    if state is not None:
        heartbeat_file.write(state)
        os.utime(file, (NOW - age_s, NOW - age_s))
    assert (failure("alive", file, NOW) is None) == alive
    assert (failure("ready", file, NOW) is None) == ready


def test_a_new_worker_removes_the_file_of_the_previous_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "worker"
    monkeypatch.setenv("HEADRACE_BEACON", str(file))
    HeartbeatFile(file).write(WorkerState.READY)
    assert main(["ready"]) == 0
    HeartbeatFile(file)
    assert main(["alive"]) == 1


@pytest.mark.parametrize("arguments", [[], ["well"], ["alive", "ready"]])
def test_an_unknown_check_is_an_error(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_BEACON", f"/tmp/{time.time()}")  # noqa: S108 - not written
    assert main(arguments) == 2


def test_a_file_that_cannot_be_written_does_not_end_the_worker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    HeartbeatFile(tmp_path / "missing" / "state").write(WorkerState.READY)
    assert "cannot write the heartbeat file" in caplog.text
