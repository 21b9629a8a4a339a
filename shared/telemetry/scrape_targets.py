"""Lets a Prometheus on the same machine find processes on random ports: each writes a file into a common folder.

The format is that of Prometheus's `file_sd_configs`. Elsewhere, DNS or Kubernetes provides the addresses.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scrape_target(folder: Path | None, role: str, host: str, port: int) -> Iterator[None]:
    """Keep this process's address in the folder while the context is open. Does nothing if the folder is None."""
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    _remove_stale_targets(folder)
    address = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104  # compared, not bound
    url_host = f"[{address}]" if ":" in address else address
    file = folder / f"{role}-{os.getpid()}.json"
    new = file.with_suffix(".new")
    new.write_text(json.dumps([{"targets": [f"{url_host}:{port}"]}]) + "\n")
    new.replace(file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _remove_stale_targets(folder: Path) -> None:
    """Remove the files of processes that were killed."""
    for file in folder.glob("*-*.json"):
        pid = file.stem.rpartition("-")[2]
        if pid.isdecimal() and not _is_running(int(pid)):
            file.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
