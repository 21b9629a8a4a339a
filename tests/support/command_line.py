"""Runs `headrace` in this process, or as a process of its own."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

from typer.testing import CliRunner, Result

from cli.app import app

REPOSITORY = Path(__file__).resolve().parents[2]


def run(
    url: str | None, *arguments: str, key: str | None = "hr_test_key", stdin: str | None = None, **env: str
) -> Result:
    """Run a command in this process; its output is captured, so it sees no terminal.

    Without `url`, it finds the installation by HEADRACE_HOME.
    """
    environment: dict[str, str | None] = {"HEADRACE_URL": url, "HEADRACE_API_KEY": key, "HEADRACE_MODEL": None, **env}
    return CliRunner().invoke(app, list(arguments), input=stdin, env=environment, prog_name="headrace")


def start(
    url: str, *arguments: str, key: str = "hr_test_key", stdout: int = subprocess.PIPE, **env: str
) -> subprocess.Popen[str]:
    """Start a command as a process."""
    environment = {**os.environ, "HEADRACE_URL": url, "HEADRACE_API_KEY": key, **env}
    return subprocess.Popen(
        [sys.executable, "-m", "cli", *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


@contextlib.contextmanager
def on_terminal(
    url: str, *arguments: str, columns: int = 80, **env: str
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a command on a terminal of its own; yields the process, and the descriptor of what the terminal shows."""
    shown, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, columns))
    environment = {
        **os.environ,
        "HEADRACE_URL": url,
        "HEADRACE_API_KEY": "hr_test_key",
        "TERM": "xterm-256color",
        **env,
    }
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        if name not in env:
            environment.pop(name, None)
    command = [sys.executable, "-m", "cli", *arguments]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    try:
        yield process, shown
    finally:
        process.kill()
        process.wait()
        os.close(shown)


class Screen:
    """What a terminal has been sent."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._sent = bytearray()

    def text(self) -> str:
        """Everything so far. Without an answer within 0.1 s, what is known."""
        with contextlib.suppress(OSError):  # EIO: the process has ended
            while select.select([self._descriptor], [], [], 0.1)[0]:
                if not (part := os.read(self._descriptor, 65536)):
                    break
                self._sent += part
        return self._sent.decode(errors="replace")


def screen(url: str, *arguments: str, columns: int = 80, **env: str) -> str:
    """Run a command on a terminal until it ends, and return everything that was written to it."""
    with on_terminal(url, *arguments, columns=columns, **env) as (process, descriptor):
        shown = Screen(descriptor)
        while process.poll() is None:
            shown.text()
        return shown.text()
