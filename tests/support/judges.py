"""Linters for manifests and Dockerfiles, in a virtual environment that `python -m tests.support.judges` creates.

It takes 400 MB and some minutes. Tests never download anything, so they are skipped if it is missing.
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
    """The folder of the environment with the currently pinned versions, whether it exists or not."""
    return cache_folder() / "venvs" / f"manifests-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"


def judge(name: str) -> Path | None:
    """The path of a linter; None if the environment was not created."""
    return folder() / "bin" / name if (folder() / "complete").exists() else None


def make() -> None:
    """Create the environment, unless it exists."""
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
