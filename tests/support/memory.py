"""Folders in memory for the data of servers that tests share."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import psutil

# A file system in memory on Linux. In containers it often has only 64 MiB.
MEMORY = Path("/dev/shm")  # noqa: S108  # only in new folders
# More than the data and write-ahead logs of the servers of a parallel run.
NEEDED_BYTES = 6 << 30
PREFIX = "headrace-tests-"


def folder_in_memory() -> tempfile.TemporaryDirectory[str]:
    """A new folder, in memory if there is room, otherwise on disk.

    A database has 300 files, and most tests with a database have a new one: on disk, creating and dropping one takes up
    to six times as much CPU time.
    """
    if not MEMORY.is_dir():
        return tempfile.TemporaryDirectory(prefix=PREFIX)
    _remove_leftovers()
    if shutil.disk_usage(MEMORY).free < NEEDED_BYTES:
        return tempfile.TemporaryDirectory(prefix=PREFIX)
    return tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", dir=MEMORY)


def _remove_leftovers() -> None:
    """Remove the folders of processes that were killed, whose data would stay in memory."""
    for folder in MEMORY.glob(f"{PREFIX}*-*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
