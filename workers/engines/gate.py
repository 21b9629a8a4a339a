"""What an engine can hold back before its job is claimed, beside the number of its slots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from shared.domain.job import OpenBreaker, Usage
from shared.domain.request import GenerateRequest


class Passage(Protocol):
    """The permission of one message to claim its job; closed when the job's attempt has ended, or without one."""

    def claimed(self, request: GenerateRequest) -> None:
        """Count the job that was claimed."""

    def settle(self, usage: Usage, resumed_after: int) -> None:
        """Count the usage of the attempt that has ended, in place of an estimate.

        `resumed_after`: the tokens of the same request of the upstream that an earlier attempt has counted.
        """

    def close(self) -> None:
        """Return what was not used."""


class Gate(Protocol):
    """Holds back messages before their jobs are claimed; a job that is held back stays queued."""

    @property
    def model(self) -> str:
        """The model's name."""

    # Called when further messages should be fetched again.
    on_room: Callable[[], None]

    @property
    def holding(self) -> bool:
        """Whether no further messages should be fetched, because they would wait. May be read from any thread."""

    @property
    def waiting(self) -> int:
        """The number of messages that wait."""

    @property
    def breaker(self) -> OpenBreaker | None:
        """Since when the circuit breaker has not been closed, and why; None if it is closed."""

    @property
    def max_wait_s(self) -> float:
        """For how long a job may wait for the upstream after it was deferred, in seconds."""

    @property
    def longest_hold_s(self) -> float:
        """For how long a message usually waits here at most, in seconds."""

    async def enter(self, priority: int) -> Passage | None:
        """Wait until a job may be claimed; the most urgent message is first.

        None: its message should go back to the queue.
        """

    def stop(self) -> None:
        """Send back all messages."""

    def resume(self) -> None:
        """Undo `stop`."""
