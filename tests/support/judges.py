"""Linters for manifests and Dockerfiles, in a virtual environment that `python -m tests.support.judges` creates.

Creating it takes some minutes and 400 MB. Tests never download anything, so they are skipped if it is missing.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from shared.config.bundled_model import cache_folder
from tests.support.cached_install import install_once, is_complete

LOCK = Path(__file__).resolve().parents[2] / "requirements" / "manifests.txt"


def folder() -> Path:
    """The folder of the environment with the currently pinned versions, whether it exists or not."""
    return cache_folder() / "venvs" / f"manifests-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"


def linter(name: str) -> Path | None:
    """The path of a linter; None if the environment was not created."""
    return folder() / "bin" / name if is_complete(folder()) else None


def install() -> None:
    """Create the environment, unless it exists."""

    def create(home: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--only-binary=:all:", "-r", str(LOCK)], check=True)

    install_once(folder(), create)


if __name__ == "__main__":
    install()
    print(folder())
