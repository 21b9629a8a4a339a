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


def usage(pid: int) -> Usage:
    """Measure a process and its descendants; processes that end meanwhile count as nothing."""
    memory = files = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for part in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                memory += _anonymous(part.pid)
                files += part.num_fds()
    return Usage(memory, files)


def _anonymous(pid: int) -> int:
    with open(f"/proc/{pid}/status") as lines:
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)
