"""Forks workers from a process that has imported everything, so that they start fast. Exits at the end of stdin.

Reads commands from stdin: `start NAME` forks a worker that logs to NAME.log, and prints `started PID`; `term PID` sends
SIGTERM. Prints `ready PID` at the start, and `exited PID` when a worker has exited. Workers run the same entry point as
`python -m workers`.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import workers.app
import workers.consumer.pool
import workers.consumer.signals
import workers.runtime
from launcher.linux import die_with_parent
from workers import main as process

# Modules that a worker imports while it starts.
_ = (workers.app, workers.runtime, workers.consumer.pool, workers.consumer.signals)


def main(model: str, folder: Path) -> None:
    gc.freeze()
    set_death_signal = die_with_parent()
    waking, wake = os.pipe()
    for end in (waking, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    pids: set[int] = set()
    print(f"ready {os.getpid()}", flush=True)
    while True:
        readable, _, _ = select.select([sys.stdin.fileno(), waking], [], [])
        if waking in readable:
            os.read(waking, 4096)
            while pids:
                pid, _ = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                pids.discard(pid)
                print(f"exited {pid}", flush=True)
        if sys.stdin.fileno() in readable:
            line = _read_line()
            if not line:
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                return
            word, argument = line.split()
            if word == "term" and int(argument) in pids:
                os.kill(int(argument), signal.SIGTERM)
            elif word == "start":
                pid = os.fork()
                if not pid:
                    _run_worker(model, folder / f"{argument}.log", set_death_signal)
                pids.add(pid)
                print(f"started {pid}", flush=True)


def _read_line() -> str:
    """Read one line, unbuffered because `select` does not see buffered input."""
    read = bytearray()
    while byte := os.read(sys.stdin.fileno(), 1):
        if byte == b"\n":
            return read.decode()
        read += byte
    return ""


def _run_worker(model: str, log: Path, set_death_signal: Callable[[], None]) -> None:
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        set_death_signal()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["workers", model]
        code = process.main()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
