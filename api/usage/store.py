"""SQL of usage: reads the sums of the ledger, or for periods shorter than a quarter of an hour, the ledger itself."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import SimpleNamespace
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Row,
    Select,
    Text,
    bindparam,
    cast,
    exists,
    func,
    literal,
    literal_column,
    select,
)
from sqlalchemy.orm import aliased

from api.usage.periods import Periods
from shared.domain.errors import InvalidRequest
from shared.postgres.engine import transaction
from shared.postgres.store import Store
from shared.postgres.tables import ProjectRow, Timestamp
from shared.postgres.usage_sums import VALUES, entry_keys, entry_values, sum_of
from shared.postgres.usage_tables import UsageEventRow, UsageSumRow, UsageWatermarkRow

# Rows that are processed in one step of the event loop. Not more are read at once, which is faster than a cursor: that
# takes a round trip for each step, and PostgreSQL reads for it without its parallel workers.
STEP_ROWS = 1000
# From its sixth execution on, PostgreSQL would plan a report for any times and projects, which takes ten times as long.
_PLAN_EACH = select(func.set_config("plan_cache_mode", "force_custom_plan", literal_column("true")))
# More rows do not belong into one response.
MAX_ROWS = 100_000


class Dimension(StrEnum):
    """What usage can be grouped by, besides the period."""

    PROJECT = "project"
    KEY = "key"
    USER = "user"
    MODEL = "model"
    ENGINE = "engine"
    REQUESTED_MODEL = "requested_model"
    KIND = "kind"
    SERVICE_TIER = "service_tier"
    BATCH = "batch"


COLUMNS: Mapping[Dimension, str] = {
    **{dimension: dimension.value for dimension in Dimension},
    Dimension.PROJECT: "project_id",
    Dimension.KEY: "key_id",
    Dimension.USER: "end_user",
}


@dataclass(frozen=True, slots=True)
class UsageFilters:
    """Which usage is read; None: all. An end user that is an empty string stands for none."""

    project_ids: Collection[int] | None = None
    key_ids: Collection[int] | None = None
    end_users: Collection[str] | None = None
    models: Collection[str] | None = None
    batch: bool | None = None


@dataclass(frozen=True, slots=True)
class UsageSelection:
    """A report: which usage, grouped how. With `by_period`, each row belongs to one of the periods."""

    periods: Periods
    filters: UsageFilters
    group_by: tuple[Dimension, ...] = ()
    by_period: bool = False
    # Read the ledger itself, of which the sums have quarter hours only.
    from_ledger: bool = False


class UsageReportStore(Store):
    """Reads usage."""

    async def rows(self, selection: UsageSelection, *, limit: int = MAX_ROWS, offset: int = 0) -> list[Any]:
        """The rows of a report: `period` (its index, if grouped by periods), a column of each group, and the sums.

        In the order of the periods and groups, one row more than `limit` if there are more.
        """
        return await self._read(usage_statement(selection).limit(limit + 1).offset(offset), limit)

    async def all_rows(self, selection: UsageSelection) -> list[Any]:
        """All rows of a report.

        Raises:
            InvalidRequest: there are too many for one response.
        """
        rows = await self.rows(selection)
        if len(rows) > MAX_ROWS:
            raise InvalidRequest(
                f"The report has more than {MAX_ROWS} rows. Choose a shorter time, or fewer groups", param="group_by"
            )
        return rows

    async def project_names(self, project_ids: Iterable[int]) -> dict[int, str]:
        """The names of projects, by id."""
        ids = sorted(set(project_ids))
        if not ids:
            return {}
        statement = select(ProjectRow.id, ProjectRow.name).where(ProjectRow.id == func.any(_array(ids, BigInteger)))
        return dict(await self._all(statement, lambda row: (row.id, row.name)))

    async def is_complete(self, project_id: int, end: datetime) -> bool:
        """Whether a time is over, and all entries of a project up to its end are in the sums."""
        missing = exists().where(
            UsageEventRow.written_by >= UsageWatermarkRow.summed_before,
            UsageEventRow.project_id == project_id,
            UsageEventRow.ended_at < end,
        )
        is_over = func.now() >= literal(end, Timestamp)
        found = await self._first(select(is_over, ~missing).select_from(UsageWatermarkRow))
        return found is not None and all(found)

    async def _read(self, statement: Select[Any], limit: int) -> list[Any]:
        """The rows of a statement that returns about `limit`."""
        async with transaction(self._engine) as connection:
            await connection.execute(_PLAN_EACH)
            if limit <= STEP_ROWS:
                return [_plain(row) for row in await connection.execute(statement)]
            parts = (await connection.stream(statement)).partitions(STEP_ROWS)
            return [_plain(row) async for part in parts for row in part]


def _plain(row: Row[Any]) -> Any:
    """A row whose columns are plain attributes: those of a `Row` take several times as long, and all are read twice."""
    return SimpleNamespace(**dict(zip(row._fields, row, strict=True)))


def usage_statement(selection: UsageSelection) -> Select[Any]:
    """The statement that reads a report."""
    source = _entries() if selection.from_ledger else UsageSumRow.__table__
    periods, filters = selection.periods, selection.filters
    columns: list[Any] = [source.c[COLUMNS[dimension]] for dimension in selection.group_by]
    groups: list[Any] = list(columns)
    if selection.by_period:
        starts = _array(periods.starts, Timestamp)
        columns.insert(0, (func.width_bucket(source.c.starts_at, starts) - 1).label("period"))
        groups.insert(0, "period")
    statement = select(*columns, *(sum_of(name, source.c[name]) for name in VALUES)).where(
        source.c.starts_at >= periods.start, source.c.starts_at < periods.end
    )
    for name, values, kind in (
        ("project_id", filters.project_ids, BigInteger),
        ("key_id", filters.key_ids, BigInteger),
        ("end_user", filters.end_users, Text),
        ("model", filters.models, Text),
    ):
        if values is not None:
            statement = statement.where(source.c[name] == func.any(_array(sorted(values), kind)))
    if selection.from_ledger and filters.project_ids is None:
        # The index of the ledger begins with the project.
        statement = statement.where(source.c.project_id.in_(_all_projects()))
    if filters.batch is not None:
        statement = statement.where(source.c.batch == filters.batch)
    return statement.group_by(*groups).order_by(*groups)


def _entries() -> Any:
    """The entries of the ledger in the form of the sums."""
    keys, values = entry_keys(UsageEventRow, UsageEventRow.ended_at), entry_values(UsageEventRow)
    columns = [expression.label(name) for name, expression in {**keys, **values}.items()]
    return select(*columns, UsageEventRow.engine).subquery("entries")


def _all_projects() -> Any:
    """All projects that are in the ledger, also those that do not exist any more: a step in the index for each."""
    first = select(func.min(UsageEventRow.project_id).label("id")).cte("ledger_projects", recursive=True)
    entry = aliased(UsageEventRow)
    following = select(func.min(entry.project_id)).where(entry.project_id > first.c.id).scalar_subquery()
    found = first.union_all(select(following).where(first.c.id.is_not(None)))
    return select(found.c.id)


def _array(values: Sequence[Any], kind: Any) -> Any:
    return cast(bindparam(None, list(values), type_=ARRAY(kind), unique=True), ARRAY(kind))
