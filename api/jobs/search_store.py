"""SQL that searches jobs, newest first, in slices of bounded size.

The ids of jobs sort by time, so that a page is a range of an index. A slice reads a number of jobs from there and
returns those that match. So the time of a search is bounded whatever it looks for, and one that finds little can be
continued where it ended. Most searches need one slice.

Conditions that few jobs meet have a shortcut: jobs that are open, that did not succeed, or that have a rare model are
found by partial indexes, however far back they are. No index is kept for this on all jobs, because every submit and
every end of a job would have to write it. For the same reason metadata is compared by its text, not by an index.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import orjson
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    func,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.domain.errors import UnreadableRow
from shared.domain.ids import first_id
from shared.domain.job import JOB_ID_PREFIX, RUNNING, JobStatus, JobSummary
from shared.postgres.engine import QUERY_CANCELED, transaction
from shared.postgres.job_conditions import IS_QUEUED, IS_RUNNING
from shared.postgres.job_rows import SUMMARY_COLUMNS, to_summary
from shared.postgres.store import Store
from shared.postgres.tables import JobRow, Timestamp

logger = logging.getLogger(__name__)


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=_HasId)

# How long one page is searched for.
BUDGET_S = 1.0
# Jobs that one statement reads: of the first slice, of the largest one, and of the smallest one, after a timeout.
SLICE = 20_000
MAX_SLICE = 80_000
MIN_SLICE = 500
# A condition with an index of its own counts as rare if it holds for at most this many jobs.
RARE = 2000
# Searches that a process makes at a time, so that submits always get connections.
CONCURRENT = 4
UNSUCCESSFUL = (JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.EXPIRED, JobStatus.INCOMPLETE)
# Times of a job come from several clocks.
_SKEW = timedelta(minutes=1)
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
# The shortest time in which a slice is tried.
_MIN_S = 0.05
# With literals, as in `IS_QUEUED`, and as in the index.
IS_UNSUCCESSFUL = JobRow.status.in_([literal_column(f"'{status.value}'") for status in UNSUCCESSFUL])


@dataclass(frozen=True, slots=True)
class JobFilters:
    """What a search looks for: jobs that meet all conditions which are set.

    `start` and `end` limit the time of the submission; `start` is part of the range. `metadata` are members that a
    job's metadata has, with exactly these values. `key_id` is only useful with the key's project.
    """

    project_id: int | None = None
    statuses: tuple[JobStatus, ...] = ()
    model: str | None = None
    key_id: int | None = None
    end_user: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobPage:
    """Jobs that match, newest first.

    `cursor`: the search continues after this id; None if there is nothing more to find. `partial`: the time of the
    search was over before the page was full.
    """

    jobs: Sequence[JobSummary]
    cursor: str | None
    partial: bool = False


@dataclass(frozen=True, slots=True)
class MatchCount:
    """The number of jobs that match, and the time of the newest one.

    `is_complete`: False if there are more, or may be, because the time of the search was over.
    """

    count: int
    is_complete: bool
    newest_at: datetime | None


@dataclass(frozen=True, slots=True)
class _Found(Generic[T]):
    """What a search has found, newest first; `cursor` and `partial` as in `JobPage`."""

    items: Sequence[T]
    cursor: str | None
    partial: bool = False


@dataclass(frozen=True, slots=True)
class _Slice:
    """The rows that a statement found, and where it stopped; None: it has read all jobs of the range."""

    rows: Sequence[Any]
    stopped_at: str | None


class JobSearchStore(Store):
    """Searches jobs."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        self._searches = asyncio.Semaphore(CONCURRENT)

    async def search(
        self, filters: JobFilters, *, limit: int, after: str | None = None, budget_s: float = BUDGET_S
    ) -> JobPage:
        """Return a page of at most `limit` jobs after the id `after`. Takes about `budget_s` at most."""

        def read(rows: Sequence[Any]) -> list[JobSummary]:
            return _summaries(rows, filters)

        found = await self._find(filters, "summary", read, limit=limit, after=after, budget_s=budget_s)
        return JobPage(found.items, found.cursor, found.partial)

    async def count(
        self, filters: JobFilters, *, limit: int, after: str | None = None, budget_s: float = BUDGET_S
    ) -> MatchCount:
        """Count up to `limit` jobs after the id `after`, within about `budget_s`. Metadata is compared as text."""
        found = await self._find(filters, "count", list, limit=limit, after=after, budget_s=budget_s)
        newest_at = max((row.created_at for row in found.items), default=None)
        return MatchCount(len(found.items), found.cursor is None, newest_at)

    async def _find(
        self,
        filters: JobFilters,
        columns: Columns,
        read: Callable[[Sequence[Any]], list[T]],
        *,
        limit: int,
        after: str | None,
        budget_s: float,
    ) -> _Found[T]:
        """Find at most `limit` jobs, of which `columns` are selected; `read` converts rows, and may leave out some."""
        found: list[T] = []
        size, cursor, began = SLICE, after, time.monotonic()
        async with self._searches:
            while True:
                left_s = budget_s - (time.monotonic() - began)
                if left_s < _MIN_S:
                    if cursor != after:
                        return _Found(found, cursor, partial=len(found) < limit)
                    size, left_s = MIN_SLICE, 2 * BUDGET_S  # a small slice must succeed, so that there is progress
                wanted = limit - len(found) + 1
                try:
                    part = await self._read(filters, columns, cursor, wanted, size, left_s / 2)
                except DBAPIError as error:
                    if getattr(error.orig, "sqlstate", None) != QUERY_CANCELED or size == MIN_SLICE:
                        raise
                    size = max(MIN_SLICE, size // 8)
                    continue
                found += read(part.rows)
                if len(found) > limit:
                    return _Found(found[:limit], found[limit - 1].id)
                if len(part.rows) == wanted:  # some of them could not be read, and others take their places
                    cursor = part.rows[-1].id
                elif part.stopped_at is None:
                    return _Found(found, None)
                else:
                    cursor, size = part.stopped_at, min(2 * size, MAX_SLICE)

    async def _read(
        self, filters: JobFilters, columns: Columns, after: str | None, limit: int, size: int, timeout_s: float
    ) -> _Slice:
        statement, parameters = search_statement(filters, after, limit, size, columns)
        timeout_ms = max(1, round(1000 * timeout_s))
        async with transaction(self._engine) as connection:
            await connection.execute(
                select(
                    func.set_config("statement_timeout", f"{timeout_ms}", True),
                    # A plan for any parameters would not know how many jobs a project has.
                    func.set_config("plan_cache_mode", "force_custom_plan", True),
                )
            )
            rows = (await connection.execute(statement, parameters)).all()
        last = rows[-1] if rows and rows[-1].number == size else None
        return _Slice([row for row in rows if row.matches], last.id if last is not None else None)


# What a search reads of a job: what lists show, or no more than counting needs.
Columns = Literal["summary", "count"]
_COLUMNS: Mapping[Columns, Sequence[Any]] = {
    "summary": SUMMARY_COLUMNS,
    "count": (JobRow.id, JobRow.created_at),
}


class _Shape(NamedTuple):
    """What the statement of a search depends on, apart from the values of its parameters."""

    columns: Columns
    statuses: tuple[JobStatus, ...]
    has_project: bool
    has_model: bool
    has_key: bool
    has_user: bool
    has_start: bool
    has_end: bool
    members: int


# The parameters of statements.
_PROJECT = bindparam("project", type_=BigInteger)
_STATUS = bindparam("status", type_=Text)
_MODEL = bindparam("model", type_=Text)
_KEY = bindparam("key", type_=BigInteger)
_USER = bindparam("user", type_=Text)
_START = bindparam("start", type_=Timestamp)
_END = bindparam("end", type_=Timestamp)
_ENDED_AFTER = bindparam("ended_after", type_=Timestamp)
_LOWEST = bindparam("lowest", type_=Text)
_BEYOND = bindparam("beyond", type_=Text)
_LIMIT = bindparam("most", type_=Integer)
_SIZE = bindparam("size", type_=Integer)


def search_statement(
    filters: JobFilters, after: str | None, limit: int, size: int, columns: Columns = "summary"
) -> tuple[Select[Any], dict[str, Any]]:
    """Select at most `limit` jobs of the next `size` ones, and the last of these even if it does not match.

    Returns the statement and its parameters.
    """
    shape = _Shape(
        columns,
        filters.statuses,
        filters.project_id is not None,
        filters.model is not None,
        filters.key_id is not None,
        filters.end_user is not None,
        filters.start is not None,
        filters.end is not None,
        len(filters.metadata),
    )
    lowest, beyond = _bounds(filters, after)
    values = {
        "project": filters.project_id,
        "status": filters.statuses[0].value if filters.statuses else None,
        "model": filters.model,
        "key": filters.key_id,
        "user": filters.end_user,
        "start": filters.start,
        "end": filters.end,
        "ended_after": _LONG_AGO if filters.start is None else filters.start - _SKEW,
        "lowest": lowest,
        "beyond": beyond,
        "most": limit,
        "size": size,
        **{f"member_{n}": _member(*pair) for n, pair in enumerate(filters.metadata.items())},
    }
    return _statement(shape), values


@lru_cache(maxsize=200)
def _statement(shape: _Shape) -> Select[Any]:
    """The statement of all searches of one shape: to build it takes longer than to read a page of jobs."""
    matches = and_(*_conditions(shape))
    keys, scanned_where = _slice(shape)
    probe = _probe(shape)
    few: ColumnElement[bool] | None = None
    if probe is not None:
        rare = probe.cte("probe").prefix_with("MATERIALIZED")
        few = select(func.count() <= literal_column(str(RARE))).select_from(rare).scalar_subquery()
        scanned_where.append(~few)
    order = [key.desc() for key in keys]
    number = func.row_number().over(order_by=order).label("number")
    scanned = (
        select(*keys, number, matches.label("matches"))
        .where(*scanned_where)
        .order_by(*order)
        .limit(_SIZE)
        .subquery("scanned")
    )
    found = (
        select(scanned.c.id, scanned.c.number, scanned.c.matches)
        .where(or_(scanned.c.matches, scanned.c.number == _SIZE))
        .order_by(*(scanned.c[key.key].desc() for key in keys))  # the order that they are in: nothing is sorted
        .limit(_LIMIT)
    )
    parts: Any = found.subquery("found")
    if few is not None:
        all_rare = (
            select(JobRow.id, literal(0, Integer).label("number"), literal(True).label("matches"))
            .where(few, JobRow.id.in_(select(rare.c.id)), JobRow.id >= _LOWEST, JobRow.id < _BEYOND, matches)
            .order_by(JobRow.id.desc())
            .limit(_LIMIT)
        )
        parts = union_all(select(found.subquery()), select(all_rare.subquery())).subquery("found")
    return (
        select(*_COLUMNS[shape.columns], parts.c.number, parts.c.matches)
        .join_from(parts, JobRow, JobRow.id == parts.c.id)
        .order_by(JobRow.id.desc())
    )


def _bounds(filters: JobFilters, after: str | None) -> tuple[str, str]:
    """The first id of the range, and the first one beyond it. An id has the time of another clock than the row."""
    lowest = JOB_ID_PREFIX if filters.start is None else first_id(JOB_ID_PREFIX, filters.start - _SKEW)
    beyond = f"{JOB_ID_PREFIX}~" if filters.end is None else first_id(JOB_ID_PREFIX, filters.end + _SKEW)
    return lowest, beyond if after is None else min(beyond, after)


def _slice(shape: _Shape) -> tuple[list[Any], list[ColumnElement[bool]]]:
    """The columns by which a slice is ordered, and its conditions.

    They leave PostgreSQL only the index that begins with these columns: if it expected to find many jobs of a project
    or status, it would read those of all others too.
    """
    first: Any = None
    value: Any = None
    conditions: list[ColumnElement[bool]] = []
    if shape.has_project:
        first = JobRow.project_id
        value = _PROJECT
    elif len(shape.statuses) == 1 and shape.statuses[0] in UNSUCCESSFUL:
        first = JobRow.status
        value = _STATUS
        conditions.append(IS_UNSUCCESSFUL)
    if first is None:
        return [JobRow.id], [JobRow.id >= _LOWEST, JobRow.id < _BEYOND]
    keys = [first, JobRow.id]
    conditions += [tuple_(*keys) >= tuple_(value, _LOWEST), tuple_(*keys) < tuple_(value, _BEYOND)]
    return keys, conditions


def _probe(shape: _Shape) -> Any | None:
    """Select the ids of jobs that meet a condition with an index of its own, or of some more than are rare.

    They are in the order of the index, so that PostgreSQL uses it: jobs of a model may all be at the end of the table.
    """

    def some(order: Sequence[Any], *conditions: ColumnElement[bool]) -> Any:
        few = select(JobRow.id).where(*conditions).order_by(*order).limit(literal_column(str(RARE + 1)))
        return select(few.subquery())

    # A range of one value, because a constant is no part of an order.
    of_model = [JobRow.model >= _MODEL, JobRow.model <= _MODEL] if shape.has_model else []
    queued = [JobRow.model, JobRow.priority, JobRow.id]
    statuses = set(shape.statuses)
    if statuses and statuses <= {JobStatus.QUEUED, *RUNNING}:
        parts = [some(queued, IS_QUEUED, *of_model)] if JobStatus.QUEUED in statuses else []
        parts += [some([JobRow.worker], IS_RUNNING, *of_model)] if statuses & set(RUNNING) else []
    elif shape.has_model:
        key = (JobRow.model, JobRow.finished_at)
        ended = [
            JobRow.finished_at.is_not(None),
            tuple_(*key) >= tuple_(_MODEL, _ENDED_AFTER),
            JobRow.model <= _MODEL,
        ]
        parts = [
            some([one.desc() for one in key], *ended),
            some(queued, IS_QUEUED, *of_model),
            some([JobRow.worker], IS_RUNNING, *of_model),
        ]
    else:
        return None
    return union_all(*parts) if len(parts) > 1 else parts[0]


def _status_is(status: JobStatus) -> ColumnElement[bool]:
    # With a literal, as in `IS_QUEUED`, for partial indexes.
    return JobRow.status == literal_column(f"'{status.value}'")


def _conditions(shape: _Shape) -> list[ColumnElement[bool]]:
    """Conditions: the job matches."""
    conditions: list[ColumnElement[bool]] = [JobRow.deleted_at.is_(None)]
    if shape.has_start:
        conditions.append(JobRow.created_at >= _START)
    if shape.has_end:
        conditions.append(JobRow.created_at < _END)
    if shape.statuses:
        conditions.append(or_(*map(_status_is, shape.statuses)))
    if shape.has_project:
        conditions.append(JobRow.project_id == _PROJECT)
    if shape.has_model:
        conditions.append(JobRow.model == _MODEL)
    if shape.has_key:
        conditions.append(JobRow.key_id == _KEY)
    if shape.has_user:
        conditions.append(func.coalesce(JobRow.end_user == _USER, False))
    stored = cast(JobRow.job_metadata, Text)
    # As text, which also takes values with U+0000, and a third of the time. `_summaries` compares the values.
    members = [bindparam(f"member_{number}", type_=Text) for number in range(shape.members)]
    return [*conditions, *(func.strpos(stored, member) > 0 for member in members)]


def _member(name: str, value: str) -> str:
    """A member of a JSON object as it is stored."""
    return orjson.dumps({name: value}).decode()[1:-1]


def _summaries(rows: Sequence[Any], filters: JobFilters) -> list[JobSummary]:
    """The jobs of rows, without those that this version cannot read."""
    jobs = []
    for row in rows:
        try:
            job = to_summary(row)
        except UnreadableRow as error:
            logger.warning("%s=%s cannot be read: %s", error.what, error.item_id, error.reason)
            continue
        if all(job.metadata.get(name) == value for name, value in filters.metadata.items()):
            jobs.append(job)
    return jobs
