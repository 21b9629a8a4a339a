"""API and worker processes, forked from a server process that has already imported their modules.

Importing takes a second of CPU time per process. A forked process runs the same code as `python -m MODULE`: the same
main module, as `__main__`, in its own environment and session. Modules that read the environment at import
(`workers.app`) are not imported in advance. Processes that use vLLM have a server of their own (`vllm_forks`).
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.context
import multiprocessing.forkserver
import multiprocessing.process
import multiprocessing.resource_tracker
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload([f"{__package__}.imported"])
LOCK = threading.RLock()


class Forked:
    """A forked process, with the part of `subprocess.Popen`'s interface that tests use."""

    def __init__(
        self,
        module: str,
        *arguments: str,
        environment: Mapping[str, str],
        out: Path,
        err: Path,
        context: multiprocessing.context.ForkServerContext = FORK,
    ) -> None:
        """`context`: knows the server to fork from."""
        self.args = [sys.executable, "-m", module, *arguments]
        for path in (out, err):
            path.touch()  # so that tests can read it before the process writes to it
        self._process = context.Process(target=_run, args=(module, arguments, dict(environment), out, err), daemon=True)
        with LOCK:
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        with LOCK:  # the exit status can be read only once
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        multiprocessing.connection.wait([self._process.sentinel], timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class CommandFailed(subprocess.CalledProcessError):
    """A command that had to succeed has failed; unlike its base class, the message has the output."""

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.stdout}\n{self.stderr}"


def run_forked(
    module: str,
    *arguments: str,
    environment: Mapping[str, str],
    check: bool = False,
    timeout: float = 60,
    context: multiprocessing.context.ForkServerContext = FORK,
) -> subprocess.CompletedProcess[str]:
    """Like `subprocess.run`, with captured output."""
    with tempfile.TemporaryDirectory(prefix="headrace-tests-") as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = Forked(module, *arguments, environment=environment, out=out, err=err, context=context)
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
        result = subprocess.CompletedProcess(process.args, status, out.read_text(), err.read_text())
    if check and status != 0:
        raise CommandFailed(status, result.args, result.stdout, result.stderr)
    return result


def leave_server() -> None:
    """Let this process, a forked one, end with its server, and the server with the tests."""
    from tests.support.fork_server import die

    die()
    forkserver: Any = vars(multiprocessing.forkserver)["_forkserver"]
    os.close(forkserver._forkserver_alive_fd)  # otherwise the server, and so this process, would outlive the tests
    forkserver._forkserver_alive_fd = None


def _forget_tracker() -> None:
    """Have a tracker of resources started if this process starts others, as if it had been started normally."""
    tracker: Any = vars(multiprocessing.resource_tracker)["_resource_tracker"]
    if tracker._fd is not None:
        os.close(tracker._fd)
    tracker._fd = tracker._pid = None


def _run(module: str, arguments: tuple[str, ...], environment: dict[str, str], out: Path, err: Path) -> None:
    """Entry point of the new process. First resets the state that multiprocessing has set."""
    leave_server()
    _forget_tracker()
    os.setsid()
    os.chdir(REPOSITORY)
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, stream.fileno())
        os.close(file)
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(environment)
    if package := sys.modules.get("workers.engines.vllm"):
        importlib.reload(package)  # it sets variables for vLLM
    time.tzset()
    multiprocessing.process._parent_process = None  # type: ignore[attr-defined]
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
