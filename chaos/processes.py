"""API and worker processes, and a supervisor that starts again what has ended."""

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
# What a role logs once it serves.
READY = {"api": "Application startup complete", "worker": " ready."}
# A worker whose consumer is stuck says so and ends, to be started again.
EXIT_STUCK = 75


@dataclass(slots=True)
class Member:
    """One process of the cluster, over all its lives."""

    name: str
    role: str
    child: Child
    down_s: float = 0.5
    # Whether its next end is our doing.
    expected: bool = False
    frozen: bool = False

    @property
    def served(self) -> bool:
        """Whether it has served since its last start."""
        return READY[self.role] in self.child.last_lines(10**6)

    @property
    def up(self) -> bool:
        return self.child.pid is not None and not self.frozen and not self.expected


@dataclass(slots=True)
class Processes:
    """All members. Ends that nobody asked for are kept in `surprises`.

    But for workers that ended to heal, and starts that failed because what they need was away.
    """

    folder: Path
    environment: Mapping[str, str]
    members: list[Member] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    healed: int = 0
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
        """Members of a role that a fault may meet: running, and not met by another one."""
        return [member for member in self.members if member.role == role and member.up]

    async def supervise(self) -> None:
        """Start again what ends, a moment later; cancel to stop."""
        while True:
            await asyncio.sleep(POLL_S)
            for member in self.members:
                code = member.child.ended()
                if code is None:
                    continue
                if code == EXIT_STUCK and not member.expected:
                    self.healed += 1
                elif not member.expected and not member.served:
                    self.failed_starts += 1
                elif not member.expected:
                    self.surprises.append(f"{member.name}: {how_it_ended(code)}\n{member.child.last_lines(12)}")
                member.expected, member.frozen = True, False
                member.child.process = None
                task = asyncio.create_task(self._start_again(member))
                self._starting.add(task)
                task.add_done_callback(self._starting.discard)

    async def _start_again(self, member: Member) -> None:
        await asyncio.sleep(member.down_s)
        member.child.start()
        member.expected = False

    async def stop(self) -> None:
        """SIGTERM to all, SIGKILL to what is left."""
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
    """Send a signal to a member's process. Returns its pid."""
    pid = member.child.pid
    if pid is not None:
        os.kill(pid, sig)
    return pid
