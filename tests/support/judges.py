"""Judges of manifests and Dockerfiles, in an environment of their own: `python -m tests.support.judges` makes it.

It takes 400 MB and some minutes, and tests never fetch anything, so they skip where it is missing.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from shared.config.bundled_model import cache_folder

LOCK = Path(__file__).resolve().parents[2] / "requirements" / "manifests.txt"


def folder() -> Path:
    """Where the environment of these very pins is, or would be."""
    return cache_folder() / "venvs" / f"manifests-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"


def judge(name: str) -> Path | None:
    """A tool of the environment; None where that has not been made."""
    return folder() / "bin" / name if (folder() / "complete").exists() else None


def make() -> None:
    """Make the environment, unless it is there."""
    home = folder()
    home.parent.mkdir(parents=True, exist_ok=True)
    with home.with_name(f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (home / "complete").exists():
            return
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--only-binary=:all:", "-r", str(LOCK)], check=True)
        (home / "complete").touch()


if __name__ == "__main__":
    make()
    print(folder())
