"""Runs a candidate in a process of its own, with a time limit, and watches its memory."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.linux import die_with_parent
from launcher.settings import REPOSITORY
from tune import machine
from tune.results import DONE, Figures
from tune.workload import Plan

COMMAND = (sys.executable, "-m", "tune.child")
# Seconds between two looks at the memory.
INTERVAL = 1.0
# What a process that was told to end gets before it is killed.
GRACE = 10.0
STEPS = {
    "load": "loads",
    "speed": "tokens per second",
    "perplexity": "perplexity",
    "answers": "greedy answers",
    "cold": "prefix cache",
    "plain": "speculation",
}

_ERROR = re.compile(r"^(?:\([^)]*\) )?(?:.*\bERROR\b.*\] )?((?:\w+\.)*\w*(?:Error|Exception|Exit)): (.+)$")


def run(
    entry: Mapping[str, Any],
    plan: Plan,
    log: Path,
    limit: float,
    step: Callable[[str], None] = lambda _: None,
    command: Sequence[str] = COMMAND,
) -> tuple[Figures, str | None]:
    """Measure an entry of models.yaml.

    Args:
        log: the file for everything that the engine prints.
        limit: seconds after which it is ended.
        step: called with what is being measured.

    Returns:
        The figures, and why they are incomplete, if they are.
    """
    values: dict[str, Any] = {}
    problem: str | None = None
    doing = "load"
    reader, writer = os.pipe()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output, os.fdopen(reader, "rb", buffering=0) as pipe, selectors.DefaultSelector() as selector:
        began = time.monotonic()
        child = subprocess.Popen(
            [*command, str(writer)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(writer,),
            start_new_session=True,  # so that Ctrl-C ends this process first, and the engine with the group
            preexec_fn=die_with_parent(signal.SIGKILL),
            text=True,
        )
        os.close(writer)
        try:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError), child.stdin as stdin:
                stdin.write(json.dumps({"entry": entry, "plan": asdict(plan), "began": time.time()}))
            selector.register(pipe, selectors.EVENT_READ)
            memory = Memory(child.pid)
            rest = b""
            while True:
                left = began + limit - time.monotonic()
                if left <= 0:
                    problem = f"ended after {limit:.0f} s, at: {STEPS.get(doing, doing)}"
                    break
                ready = selector.select(min(INTERVAL, left))
                memory.look()
                if not ready:
                    if child.poll() is not None:
                        break  # something that it has started keeps the pipe open
                    continue
                if not (data := pipe.read(1 << 16)):
                    # It has ended, or is about to.
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.wait(GRACE)
                    break
                *complete, rest = (rest + data).split(b"\n")
                for name, value in map(json.loads, complete):
                    if name == "problem":
                        problem = value
                    elif name == "step":
                        doing = value
                        step(STEPS.get(doing, doing))
                    else:
                        values[name] = value
            values["memory"], values["gpu_memory"] = memory.peak, memory.gpu_peak
        finally:
            end(child)
    if problem is None and doing != DONE:
        problem = f"its process ended with {child.returncode}, at: {STEPS.get(doing, doing)}"
    if problem is not None:
        problem = cause(problem, log.read_text(errors="replace"))
    return Figures.of(values), problem


def end(child: subprocess.Popen[str]) -> None:
    """End the process and all that it has started, which may outlive it. Also if Ctrl-C is pressed again meanwhile."""
    try:
        _signal_and_wait(child, signal.SIGTERM)
    finally:
        for pid in processes_of(child.pid):  # also those that have left its process group
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _signal_and_wait(child, signal.SIGKILL)


def _signal_and_wait(child: subprocess.Popen[str], sig: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, sig)
    deadline = time.monotonic() + GRACE
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE)
    # The next engine needs the memory of all of them.
    while processes_of(child.pid) and time.monotonic() < deadline:
        time.sleep(0.02)


class Memory:
    """The peak memory of a session of processes, in bytes. Memory that processes share counts once."""

    def __init__(self, session: int) -> None:
        self._session = session
        self._looked = 0.0
        self._looked_at_gpu = 0.0
        self.peak: int | None = None
        self.gpu_peak: int | None = None

    def look(self) -> None:
        """Record the memory, at most once in `INTERVAL`."""
        now = time.monotonic()
        if now - self._looked < INTERVAL:
            return
        self._looked = now
        pids = processes_of(self._session)
        self.peak = max(self.peak or 0, sum(proportional_size(pid) for pid in pids)) or None
        if now - self._looked_at_gpu > 10 * INTERVAL:
            self._looked_at_gpu = now
            if machine.gpus() and (used := machine.gpu_memory(pids)) is not None:
                self.gpu_peak = max(self.gpu_peak or 0, used)


def processes_of(session: int) -> set[int]:
    """The processes of a session, without those that have ended and that nobody has waited for."""
    found = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":  # fields 6 and 3 of proc(5)
                    found.add(int(entry.name))
    return found


def proportional_size(pid: int) -> int:
    """Bytes of memory of a process, with its share of what it shares; 0 if it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def cause(problem: str, log: str) -> str:
    """The problem in one line. vLLM's engine process fails elsewhere: its own error is in the log."""
    if "Engine core initialization failed" in problem or problem.startswith("its process ended"):
        errors = [found for line in log.splitlines() if (found := _ERROR.match(line.strip()))]
        others = [found for found in errors if "Engine core initialization failed" not in found[2]]
        if others:
            problem = f"{others[-1][1].rpartition('.')[2]}: {others[-1][2]}"
    problem = " ".join(problem.split())
    return problem if len(problem) <= 300 else f"{problem[:297]}..."
