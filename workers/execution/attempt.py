"""One attempt of a job."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from shared.domain.job import Job, Usage
from shared.domain.transcript import Transcript
from shared.telemetry.tracing import AttemptTrace
from workers.engines.base import PromptInfo
from workers.execution.log_writer import LogBuffer


class StopReason(StrEnum):
    """Why a running job was stopped from outside."""

    CANCEL = "cancelled"
    DEADLINE = "deadline_exceeded"
    HAND_BACK = "handed_back"
    SET_ASIDE = "set_aside"
    LOST = "lost"


@dataclass(slots=True, eq=False)
class RunningAttempt:
    """One attempt of a job while it runs here."""

    job: Job
    log: LogBuffer
    transcript: Transcript
    claimed: float = field(default_factory=time.monotonic)
    prompt: PromptInfo = field(default_factory=lambda: PromptInfo(0))
    told: Usage | None = None
    made_before: int = 0
    # When the engine was given it, on the monotonic clock.
    given: float = 0.0
    # What each attempt before this one had made, as the log tells it.
    lost_tokens: dict[int, int] = field(default_factory=dict)
    first_token_at: datetime | None = None
    generating: asyncio.Task[None] | None = None
    stop: StopReason | None = None
    trace: AttemptTrace = field(default_factory=AttemptTrace)

    def now(self) -> datetime:
        """The database's clock, as far as this attempt knows it."""
        return self.job.attempts[-1].started_at + timedelta(seconds=time.monotonic() - self.claimed)

    @property
    def tokens(self) -> int:
        """Tokens that this attempt made."""
        return self.usage().completion_tokens - self.made_before

    def usage(self) -> Usage:
        """What the engine was told by its upstream, else what it made."""
        if self.told is not None:
            return self.told
        return Usage(self.prompt.prompt_tokens, self.prompt.cached_tokens, self.transcript.tokens)
