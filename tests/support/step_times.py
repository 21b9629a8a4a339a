"""Runs a module and records the CPU time of each step of its event loops.

python -m tests.support.step_times FILE MODULE ARGUMENTS...

A step is one call of a callback, or of a task until its next await. FILE gets a line for each step that takes longer
than `RECORD_S`: its CPU time in milliseconds, and what ran. The loops are asyncio's own, because uvloop's steps cannot
be measured; the code that runs on them is the same.
"""

from __future__ import annotations

import asyncio
import asyncio.events
import runpy
import sys
import time
from pathlib import Path
from typing import Any, TextIO

RECORD_S = 0.005
# Where coroutines, asynchronous generators and generators refer to what they wait for.
_AWAITED = ("cr_await", "ag_await", "gi_yieldfrom")


def record_steps(file: TextIO) -> None:
    """Measure all steps of asyncio's loops in this process from now on."""
    run = asyncio.events.Handle._run

    def measured(handle: Any) -> None:
        callback = handle._callback
        began = time.thread_time()
        run(handle)
        taken = time.thread_time() - began
        if taken > RECORD_S:
            file.write(f"{taken * 1000:.1f} {_describe(callback)}\n")
            file.flush()

    asyncio.events.Handle._run = measured  # type: ignore[assignment,method-assign]


def forget_steps(folder: Path) -> None:
    """Empty the files of all processes in a folder."""
    for file in folder.iterdir():
        file.write_bytes(b"")


def steps_above(limit_ms: float, folder: Path) -> dict[str, tuple[float, str]]:
    """The longest step of each process whose file is in a folder and that took more than `limit_ms` of CPU time.

    A step is its CPU time in milliseconds, and what ran.
    """
    longest = {file.name: _longest_step(file) for file in folder.iterdir()}
    return {process: step for process, step in longest.items() if step[0] > limit_ms}


def _longest_step(file: Path) -> tuple[float, str]:
    lines = file.read_text().splitlines()
    steps = [(float(taken), what) for taken, _, what in (line.partition(" ") for line in lines)]
    return max(steps, default=(0.0, "none"))


def _describe(callback: Any) -> str:
    """The task of a step and where it waits now, or the callback."""
    owner = getattr(callback, "__self__", None)
    if not isinstance(owner, asyncio.Task):
        return repr(callback)
    place: Any = owner.get_coro()
    names = []
    while place is not None:
        names.append(getattr(place, "__qualname__", type(place).__name__))
        place = next((found for name in _AWAITED if (found := getattr(place, name, None)) is not None), None)
    return f"{owner.get_name()}: {' > '.join(names)}"


def main() -> None:
    import uvloop

    record, module, *arguments = sys.argv[1:]
    uvloop.new_event_loop = asyncio.SelectorEventLoop  # type: ignore[assignment]
    uvloop.Loop = asyncio.SelectorEventLoop  # type: ignore[assignment,misc]
    sys.argv = [module, *arguments]
    with Path(record).open("a") as file:
        record_steps(file)
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
