"""Starts, awaits, measures and stops the processes of a system under load."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psutil

from launcher.children import Child, how_it_ended
from launcher.settings import REPOSITORY

STOP_S = 20.0
_SECRETS = {"HEADRACE_API_KEY", "HEADRACE_FLOWER_PASSWORD", "DATABASE_URL", "REDIS_URL", "HEADRACE_MODELS"}


class Processes:
    """Named processes, each with a log in `folder`. Leaving the context stops them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: list[Child] = []
        self._tracked: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for child in self._children:
            child.terminate()
        deadline = time.monotonic() + STOP_S
        while any(child.ended() is None for child in self._children if child.process is not None):
            if time.monotonic() > deadline:
                for child in self._children:
                    child.kill()
            time.sleep(0.05)
        self._children.clear()

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Child:
        """Start a process from the repository's root."""
        inherited = {key: value for key, value in os.environ.items() if key not in _SECRETS}
        merged = {**inherited, "PYTHONUNBUFFERED": "1", **(environment or {})}
        child = Child(name, command, merged, self.folder / f"{name}.log", REPOSITORY)
        self._children.append(child)
        child.start()
        return child

    def track(self, name: str, pid: int) -> None:
        """Add a process to the CPU figures that is started and stopped elsewhere."""
        self._tracked[name] = pid

    def wait(self, child: Child, ready: Callable[[], bool], within_s: float = 60.0) -> None:
        """Wait until a process is ready.

        Raises:
            RuntimeError: It exited or timed out. The message includes the end of its log.
        """
        deadline = time.monotonic() + within_s
        while not ready():
            if (code := child.ended()) is not None:
                raise RuntimeError(f"{child.name} exited ({how_it_ended(code)}):\n{child.last_lines(30)}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{child.name} is not ready after {within_s:.0f} s:\n{child.last_lines(30)}")
            time.sleep(0.1)

    @property
    def pids(self) -> dict[str, int]:
        started = {child.name: child.pid for child in self._children if child.pid is not None}
        return started | self._tracked

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU seconds of each process so far, including its descendants."""
        return {name: tree_cpu_seconds(pid) for name, pid in self.pids.items()}


def tree_cpu_seconds(pid: int) -> float:
    """Return user and system time of a process and its descendants, including those that were reaped."""
    seconds = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


def machine_busy_seconds() -> float:
    """Return the CPU seconds used by all processes of the machine, including time stolen by its host."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def answers(url: str) -> bool:
    """Return whether a GET returns 200."""
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    """Return a free port on 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
