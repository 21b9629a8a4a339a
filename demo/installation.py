"""A separate Headrace installation for the demonstration, with its own folder, ports and models."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher import readiness
from launcher.settings import load_settings

FOLDER = Path(__file__).resolve().parent
STOP_TIMEOUT_S = 60
# Settings of the user's own installation that also apply here: the folder of converted models and the start timeout.
SHARED = ("HEADRACE_CACHE", "HEADRACE_START_TIMEOUT_S")


class DemoFailed(Exception):
    """The demonstration cannot continue; the message has the reason."""


@dataclass(frozen=True)
class Installation:
    """The address of the running API, and a key for it."""

    url: str
    key: str


@contextlib.contextmanager
def running(*, verbose: bool) -> Iterator[Installation]:
    """Start everything as `make up` does, in a temporary folder, and stop it at the end.

    Raises:
        DemoFailed: it did not start.
    """
    own = {name: value for name, value in os.environ.items() if not _is_installations(name)}
    settings = load_settings(own)
    models = FOLDER / ("models.simulated.yaml" if settings.engine == "simulated" else "models.yaml")
    key = f"hr_demo_{secrets.token_urlsafe(24)}"
    port, flower_port = _free_ports(2)
    with tempfile.TemporaryDirectory(prefix="headrace-demo-", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "demo.log"
        environment = {
            **own,
            "HEADRACE_HOME": folder,
            "HEADRACE_MODELS": str(models),
            "HEADRACE_HOST": "127.0.0.1",
            "HEADRACE_PORT": str(port),
            "HEADRACE_FLOWER_ADDRESS": "127.0.0.1",
            "HEADRACE_FLOWER_PORT": str(flower_port),
            "HEADRACE_API_KEY": key,
        }
        with log.open("wb") as output:
            launcher = subprocess.Popen(
                [sys.executable, "-m", "launcher"],
                cwd=FOLDER.parent,
                env=environment,
                stdout=None if verbose else output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches only this process, which then stops the launcher
            )
        try:
            _wait(launcher, f"http://127.0.0.1:{port}", log, settings.start_timeout_s)
            yield Installation(f"http://127.0.0.1:{port}", key)
        finally:
            _stop(launcher)


def _is_installations(variable: str) -> bool:
    """Whether a variable is a setting of the user's own installation, to whose servers nothing may be written."""
    return variable in ("DATABASE_URL", "REDIS_URL") or (variable.startswith("HEADRACE_") and variable not in SHARED)


def _stop(launcher: subprocess.Popen[bytes]) -> None:
    launcher.send_signal(signal.SIGTERM)
    try:
        launcher.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        launcher.kill()
        launcher.wait()


def _wait(launcher: subprocess.Popen[bytes], url: str, log: Path, timeout_s: float) -> None:
    began = time.monotonic()
    while not readiness.ask(url).ready:
        if launcher.poll() is not None:
            raise DemoFailed(f"Headrace did not start. The end of its output:\n{_end(log)}")
        if time.monotonic() - began > timeout_s:
            raise DemoFailed(f"Headrace was not ready after {timeout_s:g} s. The end of its output:\n{_end(log)}")
        time.sleep(0.3)


def _end(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
