"""Which requests of the log are read: the conditions, and the place where a page continues."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from api.http.times import LAST
from shared.domain.errors import InvalidRequest
from shared.domain.job import JOB_ID_PREFIX, JobStatus, is_job_id

# How far the clocks of processes may differ: a job's id has the time of another one than its end.
SKEW = timedelta(minutes=1)
_CURSOR = re.compile(r"(?P<id>[a-z0-9_]{1,80})@(?P<us>[0-9]{1,18})")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the log, which is ordered by the times when jobs ended. As a text: `job_01a2...@1796038800000000`."""

    ended_at: datetime
    job_id: str

    @classmethod
    def read(cls, text: str) -> Self:
        """Read the text of a cursor.

        Raises:
            InvalidRequest: it is none.
        """
        match = _CURSOR.fullmatch(text)
        if match is None or not is_job_id(match["id"]):
            raise InvalidRequest(f"after: must be the `last_id` of a page, got {text[:64]!r}", param="after")
        return cls(min(_EPOCH + timedelta(microseconds=min(int(match["us"]), 10**17)), LAST), match["id"])

    def __str__(self) -> str:
        return f"{self.job_id}@{(self.ended_at - _EPOCH) // timedelta(microseconds=1)}"


@dataclass(frozen=True, slots=True)
class FeedbackFilter:
    """Requests with feedback: by this metric, and if `values` are given, with one of them."""

    metric: str
    values: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoreFilter:
    """Requests that a judge has scored by this rubric, from `least` to `most`."""

    rubric: str
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True, slots=True)
class RequestFilters:
    """Requests that meet all conditions which are set. `start` and `end` limit when they ended; `end` is not included.

    `project_id`: None: of all projects. `has_body`: whether the body is kept. `below`: only requests whose sample
    number (`api.requests.sampling`) sorts before this one, for the seed `seed`.
    """

    project_id: int | None = None
    start: datetime | None = None
    end: datetime | None = None
    models: Collection[str] = ()
    requested_models: Collection[str] = ()
    statuses: Collection[JobStatus] = ()
    end_user: str | None = None
    conversation: str | None = None
    error_code: str | None = None
    batch_id: str | None = None
    request_id: str | None = None
    refused: bool | None = None
    has_body: bool | None = None
    feedback: FeedbackFilter | None = None
    score: ScoreFilter | None = None
    seed: int = 0
    below: bytes | None = None

    def described(self) -> dict[str, Any]:
        """The conditions that are set, as JSON, for the list of exports."""
        found: dict[str, Any] = {}
        for name in ("start", "end"):
            if (moment := getattr(self, name)) is not None:
                found[name] = moment.isoformat()
        for name in ("models", "requested_models", "statuses"):
            if values := getattr(self, name):
                found[name] = sorted(str(value) for value in values)
        for name in ("end_user", "conversation", "error_code", "batch_id", "request_id", "refused"):
            if (value := getattr(self, name)) is not None:
                found[name] = value
        if self.feedback is not None:
            found["feedback"] = {"metric": self.feedback.metric, "values": list(self.feedback.values)}
        if self.score is not None:
            found["score"] = {"rubric": self.score.rubric, "least": self.score.least, "most": self.score.most}
        return found


def submitted_at(job_id: str) -> datetime:
    """When a job was submitted, from its id. No job has ended before that."""
    milliseconds = int(job_id.removeprefix(JOB_ID_PREFIX)[:12], 16)
    return min(_EPOCH + timedelta(milliseconds=min(milliseconds, 10**14)), LAST)
