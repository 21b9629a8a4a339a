"""API and worker processes, and a supervisor that restarts them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launcher.children import Child, how_it_ended
from launcher.settings import REPOSITORY

POLL_S = 0.1
STOP_S = 15.0
# What each role logs once it is ready.
READY = {"api": "Application startup complete", "worker": " ready."}
# The exit code of a worker whose consumer is stuck.
EXIT_STUCK = 75


@dataclass(slots=True)
class Member:
    """One process of the cluster, across restarts."""

    name: str
    role: str
    child: Child
    down_s: float = 0.5
    # Set while a fault is ending the process, and until it is restarted.
    exit_expected: bool = False
    frozen: bool = False

    @property
    def was_ready(self) -> bool:
        """Whether it has become ready since its last start."""
        return READY[self.role] in self.child.last_lines(10**6)

    @property
    def up(self) -> bool:
        return self.child.pid is not None and not self.frozen and not self.exit_expected


@dataclass(slots=True)
class Processes:
    """All members. Unexpected exits are collected in `unexpected_exits`.

    Counted separately: workers that exited because their consumer was stuck (`self_restarts`), and starts that failed
    because a server was unavailable (`failed_starts`).
    """

    folder: Path
    environment: Mapping[str, str]
    members: list[Member] = field(default_factory=list)
    unexpected_exits: list[str] = field(default_factory=list)
    self_restarts: int = 0
    failed_starts: int = 0
    _starting: set[asyncio.Task[None]] = field(default_factory=set)

    def add(self, role: str, number: int, *arguments: str, **settings: str) -> Member:
        """Start `python -m ...` and keep it running."""
        name = f"{role}-{number}"
        command = [sys.executable, "-m", *arguments]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **self.environment, **settings}
        child = Child(name, command, environment, self.folder / f"{name}.log", REPOSITORY)
        member = Member(name, role, child)
        self.members.append(member)
        child.start()
        return member

    def of(self, role: str) -> list[Member]:
        """Return the members of a role that are running and not affected by a fault."""
        return [member for member in self.members if member.role == role and member.up]

    async def supervise(self) -> None:
        """Restart members that exit, after `down_s`, until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            for member in self.members:
                code = member.child.ended()
                if code is None:
                    continue
                if code == EXIT_STUCK and not member.exit_expected:
                    self.self_restarts += 1
                elif not member.exit_expected and not member.was_ready:
                    self.failed_starts += 1
                elif not member.exit_expected:
                    self.unexpected_exits.append(f"{member.name}: {how_it_ended(code)}\n{member.child.last_lines(12)}")
                member.exit_expected, member.frozen = True, False
                member.child.process = None
                task = asyncio.create_task(self._start_again(member))
                self._starting.add(task)
                task.add_done_callback(self._starting.discard)

    async def _start_again(self, member: Member) -> None:
        await asyncio.sleep(member.down_s)
        member.child.start()
        member.exit_expected = False

    async def stop(self) -> None:
        """Send SIGTERM to all members, and SIGKILL to those still running after `STOP_S`."""
        for task in list(self._starting):
            task.cancel()
        for member in self.members:
            send(member, signal.SIGCONT)
            member.child.terminate()
        deadline = time.monotonic() + STOP_S
        while any(member.child.ended() is None and member.child.process for member in self.members):
            if time.monotonic() > deadline:
                for member in self.members:
                    member.child.kill()
            await asyncio.sleep(POLL_S)


def send(member: Member, sig: signal.Signals) -> int | None:
    """Send a signal to a member's process. Returns its pid, or None if it is not running."""
    pid = member.child.pid
    if pid is not None:
        os.kill(pid, sig)
    return pid
