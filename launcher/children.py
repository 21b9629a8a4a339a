"""The processes that make up a running Headrace, and keeping them alive."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher import linux
from launcher.home import fresh_log, write_private
from launcher.stopping import Stopping

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
LIVED_WELL_S = 60.0


@dataclass
class Child:
    """A process in a group of its own: Ctrl-C passes it by, and whatever it started ends with it."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    log_begin: int = 0

    def start(self) -> None:
        with fresh_log(self.log).open("ab") as output:
            self.log_begin = output.tell()
            self.started_at = time.monotonic()
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=linux.die_with_parent(),
            )

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process and self.process.returncode is None else None

    def ended(self) -> int | None:
        """The exit code (minus the signal's number) once it has ended; its group is ended with it."""
        if self.process is None:
            return None
        if self.process.returncode is None:
            if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
            # Not reaped yet, so the group's number is still ours.
            self.kill()
        return self.process.wait()

    def terminate(self) -> None:
        if self.pid is not None and self.process is not None:
            self.process.terminate()

    def kill(self) -> None:
        """End the whole group at once."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def last_lines(self, count: int) -> str:
        """The end of what it wrote since its last start."""
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            log.seek(self.log_begin)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-count:])
        return ""


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


@dataclass
class _Backoff:
    delay: float = 0.0
    due: float | None = None


@dataclass
class Supervisor:
    """Starts children, starts again those that die, and ends them all. `pid_file` outlives an end by force."""

    say: Callable[[str], None]
    pid_file: Path
    patience_s: float
    children: list[Child] = field(default_factory=list)
    _backoffs: dict[str, _Backoff] = field(default_factory=dict)

    def start(self, child: Child) -> None:
        self.children.append(child)
        self._backoffs[child.name] = _Backoff()
        child.start()
        self._write_pids()

    def first_dead(self) -> Child | None:
        return next((child for child in self.children if child.ended() is not None), None)

    def tend(self) -> None:
        """Start again what has died, each time after a longer pause; it never gives up."""
        now = time.monotonic()
        for child in self.children:
            backoff = self._backoffs[child.name]
            if backoff.due is None:
                self._look_at(child, backoff, now)
            elif now >= backoff.due:
                backoff.due = None
                child.start()
                self._write_pids()
                self.say(f"{child.name} started again.")

    def _look_at(self, child: Child, backoff: _Backoff, now: float) -> None:
        code = child.ended()
        if code is None:
            return
        if now - child.started_at > LIVED_WELL_S:
            backoff.delay = 0.0
        backoff.delay = min(backoff.delay * 2 or FIRST_BACKOFF_S, LONGEST_BACKOFF_S)
        backoff.due = now + backoff.delay
        self.say(f"{child.name} died ({how_it_ended(code)}); next start in {backoff.delay:g} s. Its log: {child.log}")

    def stop(self, stopping: Stopping) -> None:
        """Ask all to end, wait, then end what is left; returns when none is left."""
        for child in reversed(self.children):
            child.terminate()
        deadline = time.monotonic() + self.patience_s
        while self._alive() and time.monotonic() < deadline and not stopping.at_once:
            time.sleep(0.05)
        stubborn = self._alive()
        for child in stubborn:
            if not stopping.at_once:
                self.say(f"{child.name} did not end within {self.patience_s:g} s; it is killed.")
            child.kill()
        while self._alive():
            time.sleep(0.02)
        self.children.clear()
        if not stubborn:
            self.pid_file.unlink(missing_ok=True)

    def _alive(self) -> list[Child]:
        return [child for child in self.children if child.process is not None and child.ended() is None]

    def _write_pids(self) -> None:
        pids = (child.pid for child in self.children)
        lines = (f"{pid} {linux.start_time(pid)}\n" for pid in pids if pid is not None)
        write_private(self.pid_file, "".join(lines))


def end_leftovers(pid_file: Path, patience_s: float) -> int:
    """End what a killed launcher left and the kernel has not ended yet; returns how many there were."""
    with contextlib.suppress(FileNotFoundError):
        words = (line.split() for line in pid_file.read_text().splitlines())
        started = {int(pid): time_ for pid, time_ in words}
        deadline = time.monotonic() + patience_s
        count = len(_still_there(started))
        while pids := _still_there(started):
            if time.monotonic() > deadline:
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(pid, signal.SIGKILL)
            time.sleep(0.05)
        pid_file.unlink()
        return count
    return 0


def _still_there(started: Mapping[int, str]) -> list[int]:
    return [pid for pid, time_ in started.items() if linux.start_time(pid) == time_]
