"""Measurements of one moment: memory and open files of each part, and the size of the database."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one part, with its descendants. Memory, in bytes, is the anonymous one: without files and shared buffers."""

    memory: int
    files: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment: seconds since the load began, jobs ended by then, bytes of the database, and each part's usage."""

    seconds: float
    jobs: int
    database: int
    parts: Mapping[str, Usage]


def usages(ancestor: int, names: Mapping[int, str]) -> dict[str, Usage]:
    """Measure processes among the descendants of one, by the names of their pids, each with its own descendants.

    Processes that end meanwhile count as nothing. All are found in one pass over the processes of the machine.
    """
    found = dict.fromkeys(sorted(names.values()), Usage(0, 0))
    part = dict(names)
    for process in psutil.Process(ancestor).children(recursive=True):  # a parent comes before its children
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            name = part.get(process.pid) or part.get(process.ppid())
            if name is None:
                continue
            part[process.pid] = name
            earlier = found[name]
            found[name] = Usage(earlier.memory + _anonymous(process.pid), earlier.files + process.num_fds())
    return found


def _anonymous(pid: int) -> int:
    with open(f"/proc/{pid}/status") as lines:
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)
