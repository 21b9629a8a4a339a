"""Environments of client programs and libraries in pinned versions, installed into the user's cache on first use."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shared.config.bundled_model import cache_folder
from tests.support.cached_install import install_once

LOCK = Path(__file__).resolve().parents[2] / "requirements" / "clients.txt"
INSTALL_S = 280


def npm_packages(name: str, *packages: str) -> Path:
    """Return a folder with these npm packages (`name@version`). Skips the test if Node or npm is missing."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed; {name} needs it")

    def install(folder: Path) -> None:
        folder.mkdir()
        (folder / "package.json").write_text(json.dumps({"private": True, "type": "module"}))
        npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", *packages]
        subprocess.run(npm, cwd=folder, check=True, timeout=INSTALL_S)

    digest = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:12]
    return install_once(cache_folder() / "node" / f"{name}-{digest}", install)


def python_clients() -> Path:
    """Return the Python of an environment with the packages of requirements/clients.txt."""

    def install(folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "--only-binary=:all:", "-r", str(LOCK)], check=True, timeout=INSTALL_S)

    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]
    return install_once(cache_folder() / "venvs" / f"clients-{digest}", install) / "bin" / "python"
