"""Programs that tests install once, in folders below the cache folder."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path


def is_complete(folder: Path) -> bool:
    """Whether `install_once` has completed in the folder."""
    return (folder / "complete").exists()


def install_once(folder: Path, install: Callable[[Path], None]) -> Path:
    """Return the folder after `install` has completed in it once, in any process."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_complete(folder):
            shutil.rmtree(folder, ignore_errors=True)
            install(folder)
            (folder / "complete").touch()
    return folder
