"""The supervisor: what dies is started again, and nothing is left at the end."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher import children
from launcher.children import Child, Supervisor, end_leftovers
from launcher.linux import start_time
from launcher.stopping import Stopping
from tests.support.waiting import eventually_sync

# Starts a grandchild that ignores SIGTERM, tells its pid, and waits.
_WITH_GRANDCHILD = """
import signal, subprocess, sys
code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"
print(subprocess.Popen([sys.executable, "-c", code]).pid, flush=True)
signal.pause()
"""


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def supervisor(tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    monkeypatch.setattr(children, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(children, "MAX_BACKOFF_S", 0.04)
    supervisor = Supervisor(lines.append, tmp_path / "pids", stop_timeout_s=0)
    yield supervisor
    supervisor.stop_timeout_s = 0
    supervisor.stop(Stopping())


def child(tmp_path: Path, code: str, name: str = "worker") -> Child:
    return Child(name, [sys.executable, "-c", code], os.environ, tmp_path / f"{name}.log", tmp_path)


def gone(pid: int) -> bool:
    return start_time(pid) is None


def test_killed_child_is_started_again_and_said_so(tmp_path: Path, supervisor: Supervisor, lines: list[str]) -> None:
    worker = child(tmp_path, "import signal; signal.pause()")
    supervisor.start(worker)
    first = worker.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)

    def restarted() -> bool:
        supervisor.restart_dead()
        return worker.pid not in (None, first)

    eventually_sync(restarted, "a new process")
    assert "worker died (SIGKILL); restarting in 0.01 s" in lines[0]
    assert str(worker.log) in lines[0]
    assert lines[1] == "worker restarted."
    assert str(worker.pid) in supervisor.pid_file.read_text()


def test_child_that_always_dies_is_never_given_up(tmp_path: Path, supervisor: Supervisor, lines: list[str]) -> None:
    supervisor.start(child(tmp_path, "raise SystemExit(3)"))

    def died_often() -> bool:
        supervisor.restart_dead()
        return sum("died (exit code 3)" in line for line in lines) >= 6

    eventually_sync(died_often, "six deaths")
    pauses = [line.split("restarting in ")[1].split(" s")[0] for line in lines if "died" in line]
    assert pauses[:5] == ["0.01", "0.02", "0.04", "0.04", "0.04"]


def test_stop_ends_what_children_started(tmp_path: Path, supervisor: Supervisor) -> None:
    worker = child(tmp_path, _WITH_GRANDCHILD)
    supervisor.start(worker)
    eventually_sync(lambda: worker.last_lines(1), "the grandchild's pid")
    grandchild, pid = int(worker.last_lines(1)), worker.pid
    assert pid is not None
    supervisor.stop_timeout_s = 10
    supervisor.stop(Stopping())
    eventually_sync(lambda: gone(grandchild) and gone(pid), "both gone")
    assert not supervisor.pid_file.exists()


def test_child_that_will_not_end_is_killed(tmp_path: Path, supervisor: Supervisor, lines: list[str]) -> None:
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
    worker = child(tmp_path, code)
    supervisor.start(worker)
    eventually_sync(lambda: worker.last_lines(1) == "deaf", "it ignores SIGTERM")
    supervisor.stop_timeout_s = 0.05
    supervisor.stop(Stopping())
    assert worker.ended() == -signal.SIGKILL
    assert "worker did not stop within" in lines[0]


def test_second_request_kills_at_once(tmp_path: Path, supervisor: Supervisor) -> None:
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
    worker = child(tmp_path, code)
    supervisor.start(worker)
    eventually_sync(lambda: worker.last_lines(1) == "deaf", "it ignores SIGTERM")
    stopping = Stopping()
    stopping.requests = 2
    supervisor.stop_timeout_s = 3600
    supervisor.stop(stopping)
    assert worker.ended() == -signal.SIGKILL


def test_last_lines_are_of_the_last_start(tmp_path: Path) -> None:
    worker = child(tmp_path, "print('hello')")
    for _ in range(2):
        worker.start()
        eventually_sync(lambda: worker.ended() is not None, "its end")
    assert worker.last_lines(30) == "hello"


def test_leftovers_of_a_killed_launcher_are_ended(tmp_path: Path) -> None:
    leftover = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
    (tmp_path / "pids").write_text(f"{leftover.pid} {start_time(leftover.pid)}\n")
    assert end_leftovers(tmp_path / "pids", stop_timeout_s=0) == 1
    assert leftover.wait() == -signal.SIGKILL
    assert not (tmp_path / "pids").exists()


def test_process_that_only_has_the_same_number_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pids").write_text(f"{os.getpid()} 1\n")
    assert end_leftovers(tmp_path / "pids", stop_timeout_s=0) == 0
