"""Reads the bodies of the request log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from shared.domain.log_level import LogLevel


class MissingReason(StrEnum):
    """Why the request log has no body of a job."""

    # There is no row: the job does not exist, has not ended, is of level `none`, or its row has expired.
    NOT_LOGGED = "not_logged"
    # The level is `metadata`.
    LEVEL = "level"
    # It is written soon.
    PENDING = "pending"
    # It could not be kept: the job was deleted before, or its row is unreadable.
    LOST = "lost"
    ERASED = "erased"
    EXPIRED = "expired"
    # The process has no master key for it, or not the one that it was encrypted with.
    NO_KEY = "no_key"
    # It was changed, or damaged: it does not decrypt with its key.
    DAMAGED = "damaged"


EXPLANATIONS = {
    MissingReason.NOT_LOGGED: "The request log has no entry for this job.",
    MissingReason.LEVEL: "The log level of this job keeps no bodies.",
    MissingReason.PENDING: "The body is being written; try again in a few seconds.",
    MissingReason.LOST: "The body could not be kept: the job was deleted before it was written.",
    MissingReason.ERASED: "The body was erased at the request of its end user.",
    MissingReason.EXPIRED: "The body was deleted after the retention period of the request log.",
    MissingReason.NO_KEY: "The master key that the body is encrypted with is not configured (HEADRACE_LOG_KEY).",
    MissingReason.DAMAGED: "The body does not decrypt: it was changed or damaged.",
}


@dataclass(frozen=True, slots=True)
class Missing:
    """There is no body to show, and why."""

    reason: MissingReason

    @property
    def explanation(self) -> str:
        """The reason as a sentence."""
        return EXPLANATIONS[self.reason]


@dataclass(frozen=True, slots=True)
class Body:
    """What the request log has of a job's content.

    `request` is the JSON form of a `GenerateRequest`, `output` that of the job's choices (as in the job's row), and
    `metadata` the client's. With the level `redacted`, all strings in them are redacted, and `redactions` counts what
    was replaced, by kind.
    """

    job_id: str
    ended_at: datetime
    level: LogLevel
    request: dict[str, Any]
    output: list[dict[str, Any]] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    error_message: str | None = None
    redactions: dict[str, int] = field(default_factory=dict)


class Bodies:
    """Reads bodies. They are decrypted when they are opened, and nothing of them is cached."""

    async def open_body(self, job_id: str) -> Body | Missing:
        """Return the body of a job, of any project: the caller checks who may read it."""
        return (await self.open_bodies([job_id]))[job_id]

    async def open_bodies(self, job_ids: Sequence[str]) -> dict[str, Body | Missing]:
        """Return the bodies of jobs, of any projects, by job id, in one query for all. At most some hundreds."""
        raise NotImplementedError
