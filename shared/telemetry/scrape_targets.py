"""How a Prometheus on the same machine finds processes whose ports nobody chose: a file for each, in one folder.

The files are those of Prometheus's `file_sd_configs`. Elsewhere, DNS or Kubernetes knows where processes are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scrape_target(folder: Path | None, role: str, host: str, port: int) -> Iterator[None]:
    """Name this process's address in the folder for as long as it lives. None: nobody looks there."""
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    _forget_the_dead(folder)
    address = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104  # it is compared, not bound
    shown = f"[{address}]" if ":" in address else address
    file = folder / f"{role}-{os.getpid()}.json"
    new = file.with_suffix(".new")
    new.write_text(json.dumps([{"targets": [f"{shown}:{port}"]}]) + "\n")
    new.replace(file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _forget_the_dead(folder: Path) -> None:
    """Remove what processes that were killed have left."""
    for file in folder.glob("*-*.json"):
        pid = file.stem.rpartition("-")[2]
        if pid.isdecimal() and not _lives(int(pid)):
            file.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
