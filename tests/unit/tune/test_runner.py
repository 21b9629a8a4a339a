"""Candidates run in processes of their own, which may fail or hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tune import runner
from tune.runner import cause, processes_of, run
from tune.workload import QUICK

REPORTS = """
import json, os, sys
job = json.load(sys.stdin)
pipe = int(sys.argv[1])
def report(name, value):
    os.write(pipe, json.dumps([name, value]).encode() + b"\\n")
"""


def program(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", REPORTS + text)


def test_figures_are_collected(tmp_path: Path) -> None:
    steps: list[str] = []
    text = """
report("step", "speed")
os.write(pipe, b'["load", 3.5]\\n["speed", {"1": 4')
os.write(pipe, b'0.5}]\\n')
report("perplexity", len(job["plan"]["tokens"]) + job["entry"]["x"])
report("step", "done")
print("printed")
sys.exit(1)  # fails when it has nothing left to do
"""
    figures, problem = run({"x": 1}, QUICK, tmp_path / "log", 60, steps.append, program(text))
    assert problem is None
    assert (figures.load, figures.speed, figures.perplexity) == (3.5, {1: 40.5}, 5)
    assert steps == ["tokens per second", "done"]
    assert (tmp_path / "log").read_text() == "printed\n"


def test_a_problem_is_a_result(tmp_path: Path) -> None:
    text = 'report("load", 1.0); report("problem", "no such\\nmethod"); sys.exit(1)'
    figures, problem = run({}, QUICK, tmp_path / "log", 60, command=program(text))
    assert (figures.load, problem) == (1.0, "no such method")


def test_a_process_that_dies_is_a_result(tmp_path: Path) -> None:
    _, problem = run({}, QUICK, tmp_path / "log", 60, command=program("os.abort()"))
    assert problem == "its process ended with -6, at: loads"


def test_one_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "GRACE", 0.2)
    text = """
import signal, subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
report("memory", child.pid)
report("load", os.getpid())
report("step", "answers")
signal.pause()
"""
    figures, problem = run({}, QUICK, tmp_path / "log", 1.5, command=program(text))
    assert problem == "ended after 2 s, at: greedy answers"
    assert figures.load is not None
    assert processes_of(int(figures.load)) == set()
    assert figures.memory is not None
    assert figures.memory > 1_000_000


def test_one_that_dies_is_noticed_although_its_engine_holds_the_pipe(tmp_path: Path) -> None:
    text = """
import subprocess
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=[pipe])
report("load", os.getpid())
os._exit(3)
"""
    figures, problem = run({}, QUICK, tmp_path / "log", 60, command=program(text))
    assert problem == "its process ended with 3, at: loads"
    assert figures.load is not None
    assert processes_of(int(figures.load)) == set()


def test_processes_that_have_left_the_group_are_ended(tmp_path: Path) -> None:
    text = """
import subprocess
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
report("load", os.getpid())
report("step", "done")
"""
    figures, problem = run({}, QUICK, tmp_path / "log", 60, command=program(text))
    assert problem is None
    assert figures.load is not None
    assert processes_of(int(figures.load)) == set()


def test_a_second_ctrl_c_kills_the_engine_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = runner._signal_and_wait

    def interrupted(child: subprocess.Popen[str], sig: signal.Signals) -> None:
        if sig == signal.SIGTERM:
            raise KeyboardInterrupt
        wait(child, sig)

    monkeypatch.setattr(runner, "_signal_and_wait", interrupted)
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(command, start_new_session=True, text=True) as child:
        with pytest.raises(KeyboardInterrupt):
            runner.end(child)
        assert child.wait(0) == -signal.SIGKILL


def test_ctrl_c_ends_the_engine(tmp_path: Path) -> None:
    before, session = _started_here(), set[int]()

    def interrupt(_: str) -> None:
        session.update(_started_here() - before)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(
            {},
            QUICK,
            tmp_path / "log",
            60,
            interrupt,
            program('report("step", "speed"); import signal; signal.pause()'),
        )
    (started,) = session
    assert processes_of(started) == set()


def _started_here() -> set[int]:
    """The leaders of sessions that this process has started. Servers of other tests are among them."""
    found = set()
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid() and int(fields[3]) == pid:
                found.add(pid)
    return found


def test_the_cause_of_a_failed_start_is_found_in_the_log() -> None:
    log = """\
(EngineCore pid=7) ERROR 11-30 10:00:00 [core.py:1] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-30 10:00:00 [core.py:1] ValueError: bfloat16 is needed
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
    assert cause("Engine core initialization failed. See root cause above.", log) == "ValueError: bfloat16 is needed"
    assert cause("max_model_len is too large", log) == "max_model_len is too large"
    assert len(cause("x" * 1000, "")) == 300
