"""Starts workers fast: everything is imported once, and each worker is a fork of this. Ends with its input.

Reads lines: `start NAME` forks a worker that logs to NAME.log and says `started PID`; `term PID` sends SIGTERM. Says
`ready PID` when it is, and `gone PID` when a worker has ended. A worker is `workers.main` as ever; only its start is
cheaper.
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

# What a worker imports once it runs.
_ = (workers.app, workers.runtime, workers.consumer.pool, workers.consumer.signals)


def main(model: str, folder: Path) -> None:
    gc.freeze()
    tie = die_with_parent()
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
                print(f"gone {pid}", flush=True)
        if sys.stdin.fileno() in readable:
            line = _line()
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
                    _become(model, folder / f"{argument}.log", tie)
                pids.add(pid)
                print(f"started {pid}", flush=True)


def _line() -> str:
    """One line, read without a buffer that `select` would not know of."""
    read = bytearray()
    while byte := os.read(sys.stdin.fileno(), 1):
        if byte == b"\n":
            return read.decode()
        read += byte
    return ""


def _become(model: str, log: Path, tie: Callable[[], None]) -> None:
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        tie()
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
