"""The launcher, as a process in a home of its own."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import termios
from pathlib import Path

from launcher.settings import REPOSITORY
from tests.support.ports import free_port
from tests.support.waiting import eventually_sync


class Launcher:
    """A launcher under test, in a home of its own."""

    def __init__(self, home: Path, module: str = "tests.support.stub_launcher") -> None:
        self.home = home
        self.module = module
        self.port, self.flower_port = free_port(), free_port()
        self.output_file = home.with_suffix(".out")
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, *, terminal: int | None = None, **environment: str) -> subprocess.Popen[bytes]:
        """Start it, with a controlling terminal if one is given. Its output goes to `output_file`."""
        clean = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}
        mine = {
            "ENGINE": "simulated",
            "HEADRACE_HOME": str(self.home),
            "HEADRACE_LEASE_S": "0.2",
            "HEADRACE_PORT": str(self.port),
            "HEADRACE_FLOWER_PORT": str(self.flower_port),
        }
        with self.output_file.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", self.module],
                cwd=REPOSITORY,
                env=clean | mine | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=None if terminal is None else lambda: fcntl.ioctl(terminal, termios.TIOCSCTTY, 0),
            )
        self.running.append(process)
        return process

    def start_and_wait(self, *, terminal: int | None = None, **environment: str) -> subprocess.Popen[bytes]:
        """Start it and wait until everything is ready."""
        process = self.start(terminal=terminal, **environment)
        try:
            eventually_sync(
                lambda: "Headrace is ready" in self.output or process.poll() is not None, "the banner", within_s=180
            )
        except AssertionError:
            process.terminate()  # a fixture that fails here never ends it
            process.wait(30)
            raise
        assert process.poll() is None, self.output
        return process

    @property
    def output(self) -> str:
        return self.output_file.read_text()

    def pids(self) -> list[int]:
        """Every process that belongs to it: parts and servers."""
        pids = [int(line.split()[0]) for line in (self.home / "pids").read_text().splitlines()]
        servers = (self.home / "postgres" / "postmaster.pid", self.home / "valkey" / "valkey.pid")
        return pids + [int(file.read_text().split()[0]) for file in servers]
