"""Reads the request log, newest first, in slices of bounded size: one statement for each page."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Any

from sqlalchemy import Row, func, literal_column, select
from sqlalchemy.ext.asyncio import AsyncEngine

from api.requests.filters import Cursor, RequestFilters
from api.requests.page_statement import COLUMNS, entry_statement, page_statement
from shared.postgres.engine import transaction
from shared.postgres.store import Store

# Rows that one statement reads, and with conditions for which it looks each row up in another table.
SLICE, LOOKUP_SLICE = 20_000, 8_000
# Searches that a process makes at a time, so that submits always get connections.
CONCURRENT = 4
# A plan for any parameters would not know how many rows a project has. And where PostgreSQL expects few rows, it would
# read and sort all of them: of the project with the lowest id it expects hardly any, whatever there is.
_PLANNER = select(
    func.set_config("plan_cache_mode", "force_custom_plan", literal_column("true")),
    func.set_config("enable_sort", "off", literal_column("true")),
    func.set_config("enable_incremental_sort", "off", literal_column("true")),
)


@dataclass(frozen=True, slots=True)
class Feedback:
    """What somebody thinks of an answer. `value`: a boolean, a number or a string."""

    metric: str
    value: Any
    tags: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Score:
    """What a judge says of an answer."""

    rubric: str
    score: float
    judge_model: str


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """A row of the request log, with the feedback and the scores of its answer. `project`: None if it was deleted.

    `body`: as in the row, or `expired`.
    """

    job_id: str
    ended_at: datetime
    project_id: int
    project: str | None
    key_id: int
    end_user: str | None
    conversation: str | None
    request_id: str | None
    batch_id: str | None
    kind: str | None
    model: str
    requested_model: str
    status: str
    error_code: str | None
    created_at: datetime
    first_token_at: datetime | None
    input_tokens: int | None
    output_tokens: int | None
    answered: bool
    level: str
    body: str
    refused: bool | None
    refusal_source: str | None
    feedback: Sequence[Feedback] = ()
    scores: Sequence[Score] = ()

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.ended_at, self.job_id)


@dataclass(frozen=True, slots=True)
class RequestPage:
    """Requests that match, newest first. `cursor`: what follows comes after it; None: nothing does.

    `partial`: the statement has read as many rows as it may before the page was full.
    """

    requests: Sequence[LoggedRequest]
    cursor: Cursor | None
    partial: bool = False


class LoggedRequestStore(Store):
    """Reads the request log."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        self._searches = asyncio.Semaphore(CONCURRENT)

    async def page(
        self, filters: RequestFilters, *, limit: int, after: Cursor | None = None, size: int | None = None
    ) -> RequestPage:
        """Return at most `limit` of the next `size` requests after a cursor: those that match."""
        if size is None:
            size = SLICE if filters.feedback is None and filters.score is None else LOOKUP_SLICE
        statement, parameters = page_statement(filters, after, limit + 1, size)
        async with self._searches, transaction(self._engine) as connection:
            await connection.execute(_PLANNER)
            rows = (await connection.execute(statement, parameters)).all()
        found = [_request(row) for row in rows if row.matches]
        if len(found) > limit:
            return RequestPage(found[:limit], found[limit - 1].cursor)
        last = rows[-1] if rows and rows[-1].number == size else None
        if last is None:
            return RequestPage(found, None)
        return RequestPage(found, Cursor(last.ended_at, last.job_id), partial=len(found) < limit)

    async def get(self, job_id: str, project_id: int | None) -> LoggedRequest | None:
        """Return the row of a job, of one project or of any (None)."""
        return await self._one(entry_statement(job_id, project_id), _request)


def _request(row: Row[Any]) -> LoggedRequest:
    values = {name: getattr(row, name) for name in COLUMNS}
    return LoggedRequest(
        **values,
        project=row.project,
        feedback=[Feedback(metric, value, tags) for _, metric, value, tags in _in_order(row.feedback)],
        scores=[Score(rubric, float(score), judge) for _, rubric, score, judge in _in_order(row.scores)],
    )


def _in_order(items: list[Any] | None) -> list[Any]:
    """Rows of another table by their ids, which come first. PostgreSQL would read all of its index to sort them."""
    return sorted(items or (), key=itemgetter(0))
