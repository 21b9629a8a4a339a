"""Child processes of the launcher, and the supervisor that restarts them."""

import contextlib
import math
import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher import linux
from launcher.errors import LaunchError
from launcher.home import fresh_log, write_private
from launcher.stopping import Stopping
from shared.config.models.loader import ModelSpec

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
STABLE_AFTER_S = 60.0
# After this many ends in a row, the end of the log is printed too.
REPORT_EVERY = 5


@dataclass
class Child:
    """A process in its own group: Ctrl-C does not reach it, and its descendants are killed with it."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    folder: Path
    stop_signal: signal.Signals = signal.SIGTERM
    # The entry in models.yaml that a worker was given last.
    model: ModelSpec | None = None
    # Whom the process runs as; None: as this process.
    account: linux.Account | None = None
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
                user=self.account.uid if self.account else None,
                group=self.account.gid if self.account else None,
                extra_groups=[] if self.account else None,
                preexec_fn=linux.die_with_parent(self.stop_signal),
            )

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process and self.process.returncode is None else None

    def ended(self) -> int | None:
        """Return the exit code (negative for a signal) once the process has ended, killing the rest of its group."""
        if self.process is None:
            return None
        if self.process.returncode is None:
            if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
            # Not reaped yet, so the group id cannot have been reused.
            self.kill()
        return self.process.wait()

    def terminate(self) -> None:
        """Ask the process to stop."""
        self.send(self.stop_signal)

    def send(self, sig: signal.Signals) -> None:
        """Send a signal to the process, unless it has ended."""
        if self.process is not None:
            self.process.send_signal(sig)

    def kill(self) -> None:
        """Kill the whole group."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def last_lines(self, count: int) -> str:
        """Return the last `count` log lines since the last start."""
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            log.seek(self.log_begin)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-count:])
        return ""


def how_it_ended(code: int) -> str:
    """Describe an exit code."""
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
    # Ends and failed starts since the child last ran for `STABLE_AFTER_S`.
    failures: int = 0


@dataclass
class Supervisor:
    """Starts, restarts and stops children. `pid_file` is left behind if the launcher or a child was killed."""

    say: Callable[[str], None]
    pid_file: Path
    stop_timeout_s: float
    # Started and stopped elsewhere, in an order of their own; restarted like the children.
    servers: Sequence[Child] = ()
    children: list[Child] = field(default_factory=list)
    _released: set[str] = field(default_factory=set)
    # When to kill the children that were told to stop, by name.
    _kill_at: dict[str, float] = field(default_factory=dict)
    _backoffs: dict[str, _Backoff] = field(default_factory=lambda: defaultdict(_Backoff))

    def start(self, child: Child) -> None:
        self.children.append(child)
        child.start()
        self._write_pids()

    def release(self, child: Child) -> None:
        """Let a child end by itself: it is not restarted then."""
        self._released.add(child.name)

    def retain(self, child: Child) -> None:
        """Undo `release`."""
        self._released.discard(child.name)

    def restart(self, child: Child) -> None:
        """Stop a child, and start it again once it has ended."""
        self._kill_at.setdefault(child.name, time.monotonic() + self.stop_timeout_s)
        child.terminate()

    def first_dead(self) -> Child | None:
        return next((child for child in (*self.servers, *self.children) if child.ended() is not None), None)

    def restart_dead(self) -> None:
        """Restart what died, with exponential backoff and no limit on attempts, and what was told to stop for that."""
        now = time.monotonic()
        for child in [child for child in self.children if child.name in self._released or child.name in self._kill_at]:
            self._let_end(child, now)
        for child in (*self.servers, *self.children):
            backoff = self._backoffs[child.name]
            if backoff.due is None:
                if (code := child.ended()) is not None:
                    if now - child.started_at > STABLE_AFTER_S:
                        backoff.delay, backoff.failures = 0.0, 0
                    self._schedule(child, backoff, f"died ({how_it_ended(code)})")
            elif now >= backoff.due:
                self._restart(child, backoff)

    def _let_end(self, child: Child, now: float) -> None:
        """Forget a child that was released, or start one again that was told to stop, if it has ended."""
        if (code := child.ended()) is None:
            if now > self._kill_at.get(child.name, math.inf):
                self._kill_at[child.name] = math.inf
                self.say(f"{child.name} did not stop within {self.stop_timeout_s:g} s; killing it.")
                child.kill()
            return
        is_restarted = self._kill_at.pop(child.name, None) is not None
        if child.name in self._released:
            self._forget(child)
            self.say(f"{child.name} has ended ({how_it_ended(code)}).")
        elif is_restarted:
            self._restart(child, self._backoffs[child.name])

    def _forget(self, child: Child) -> None:
        self.children.remove(child)
        self._released.discard(child.name)
        self._backoffs.pop(child.name, None)
        self._write_pids()

    def _restart(self, child: Child, backoff: _Backoff) -> None:
        try:
            child.start()
        except (OSError, subprocess.SubprocessError, LaunchError) as error:
            self._schedule(child, backoff, f"cannot be started ({error})")
            return
        backoff.due = None
        self._write_pids()
        self.say(f"{child.name} restarted.")

    def _schedule(self, child: Child, backoff: _Backoff, event: str) -> None:
        backoff.delay = min(backoff.delay * 2 or FIRST_BACKOFF_S, MAX_BACKOFF_S)
        backoff.due = time.monotonic() + backoff.delay
        backoff.failures += 1
        self.say(f"{child.name} {event}; restarting in {backoff.delay:g} s. Log: {child.log}")
        if backoff.failures % REPORT_EVERY == 0:
            self.say(f"{child.name} has failed {backoff.failures} times in a row. Its last lines:")
            self.say(child.last_lines(10) or "(none)")

    def stop(self, stopping: Stopping) -> None:
        """Send SIGTERM to all children, wait, then kill those still running. Returns once all have ended."""
        for child in reversed(self.children):
            child.terminate()
        deadline = time.monotonic() + self.stop_timeout_s
        while self._alive() and time.monotonic() < deadline and not stopping.forced:
            time.sleep(0.05)
        unresponsive = self._alive()
        for child in unresponsive:
            if not stopping.forced:
                self.say(f"{child.name} did not stop within {self.stop_timeout_s:g} s; killing it.")
            child.kill()
        while self._alive():
            time.sleep(0.02)
        self.children.clear()
        if not unresponsive:
            self.pid_file.unlink(missing_ok=True)

    def _alive(self) -> list[Child]:
        return [child for child in self.children if child.process is not None and child.ended() is None]

    def _write_pids(self) -> None:
        pids = (child.pid for child in self.children)
        lines = (f"{pid} {linux.start_time(pid)}\n" for pid in pids if pid is not None)
        write_private(self.pid_file, "".join(lines))


def end_leftovers(pid_file: Path, stop_timeout_s: float) -> int:
    """End processes that a killed launcher left running. Returns how many there were."""
    with contextlib.suppress(FileNotFoundError):
        words = (line.split() for line in pid_file.read_text().splitlines())
        started = {int(pid): time_ for pid, time_ in words}
        deadline = time.monotonic() + stop_timeout_s
        count = len(_alive_pids(started))
        while pids := _alive_pids(started):
            if time.monotonic() > deadline:
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(pid, signal.SIGKILL)
            time.sleep(0.05)
        pid_file.unlink()
        return count
    return 0


def _alive_pids(started: Mapping[int, str]) -> list[int]:
    return [pid for pid, time_ in started.items() if linux.start_time(pid) == time_]
