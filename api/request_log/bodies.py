"""Reads the bodies of the request log."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

import orjson

from api.request_log.encryption import Cipher, DecryptionFailed, MasterKeys, UnknownMasterKey, unseal
from api.request_log.store import RequestLogStore, StoredBody
from shared.domain.job import known_fields
from shared.domain.log_level import LogLevel
from shared.runtime import chunked_json
from shared.runtime.offload import INLINE_BYTES, off_loop

logger = logging.getLogger(__name__)


class MissingReason(StrEnum):
    """Why the request log has no body of a job."""

    # There is no row: the job does not exist, has not ended, is of level `none`, or its row has expired.
    NOT_LOGGED = "not_logged"
    # The level is `metadata`.
    LEVEL = "level"
    # It is written soon.
    PENDING = "pending"
    # It could not be kept: the job had been removed after its retention, or its row is unreadable.
    LOST = "lost"
    DELETED = "deleted"
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
    MissingReason.LOST: "The body could not be kept: the job was gone before it was written, or cannot be redacted.",
    MissingReason.DELETED: "The body was deleted with its job.",
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
    was replaced, by kind. `size`: the bytes of all of it as JSON.
    """

    job_id: str
    ended_at: datetime
    level: LogLevel
    request: dict[str, Any]
    output: list[dict[str, Any]] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    error_message: str | None = None
    redactions: dict[str, int] = field(default_factory=dict)
    size: int = 0


class Bodies:
    """Reads bodies. They are decrypted when they are opened, and nothing of them is cached."""

    def __init__(self, store: RequestLogStore, masters: MasterKeys) -> None:
        self._store = store
        self._masters = masters

    async def open_body(self, job_id: str) -> Body | Missing:
        """Return the body of a job, of any project: the caller checks who may read it."""
        return (await self.open_bodies([job_id]))[job_id]

    async def open_bodies(
        self, job_ids: Sequence[str], *, since: datetime | None = None, until: datetime | None = None
    ) -> dict[str, Body | Missing]:
        """Return the bodies of jobs, of any projects, by job id, in one query for all. At most some hundreds.

        `since` and `until`: the jobs ended in this time; so the query reads only the partitions of these days.
        """
        found: dict[str, Body | Missing] = {job_id: Missing(MissingReason.NOT_LOGGED) for job_id in job_ids}
        for row in await self._store.stored(job_ids, since, until):
            found[row.job_id] = await off_loop(len(row.sealed or b""), self._opened, row)
        return found

    async def sizes(
        self, job_ids: Sequence[str], *, since: datetime | None = None, until: datetime | None = None
    ) -> dict[str, int]:
        """The bytes of the bodies that there are, compressed, by job id. `since` and `until`: as of `open_bodies`."""
        return await self._store.sizes(job_ids, since, until)

    def _opened(self, row: StoredBody) -> Body | Missing:
        if not row.level.keeps_body:
            return Missing(MissingReason.LEVEL)
        if row.state != "kept":
            return Missing(_STATES.get(row.state, MissingReason.LOST))
        if row.sealed is None or row.day is None or row.master is None or row.wrapped is None:
            return Missing(MissingReason.EXPIRED)
        try:
            cipher = Cipher(self._masters.unwrap(row.master, row.wrapped, row.day))
            text = unseal(cipher, row.job_id, row.sealed)
        except UnknownMasterKey:
            return Missing(MissingReason.NO_KEY)
        except DecryptionFailed as error:
            logger.error("job=%s its body in the request log cannot be decrypted: %s", row.job_id, error)
            return Missing(MissingReason.DAMAGED)
        members = orjson.loads(text) if len(text) <= INLINE_BYTES else chunked_json.loads(text.decode())
        return Body(row.job_id, row.ended_at, row.level, **{**known_fields(Body, members), "size": len(text)})


_STATES = {
    "none": MissingReason.LEVEL,
    "pending": MissingReason.PENDING,
    "deleted": MissingReason.DELETED,
    "erased": MissingReason.ERASED,
}
