"""The sums of the ledger: every entry is added once, in the order of the transactions that wrote the entries.

All entries of transactions before the watermark are in the sums. The next step adds those of the transactions from
there up to the oldest one that is still open, and moves the watermark, in one transaction. So a transaction that
commits late is not missed, and nothing is added twice, however often the process that does this is killed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Numeric,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import aliased

from shared.postgres.engine import transaction
from shared.postgres.prepared import Prepared
from shared.postgres.store import Store
from shared.postgres.usage_tables import TOKEN_COUNTS, UsageEventRow, UsageSumRow, UsageWatermarkRow

# The entries that one transaction adds: about a second of work at most.
PORTION = 50_000
_WATERMARK = 1
_COUNT: ColumnElement[int] = literal_column("1", Integer)
_NONE: ColumnElement[int] = literal_column("0", Integer)


def _transaction(boundary: Any) -> ColumnElement[int]:
    """A transaction id of the current snapshot, as a number."""
    return cast(cast(boundary(func.pg_current_snapshot()), Text), BigInteger)


# All earlier transactions have ended, and have committed their rows or will never do so.
_HORIZON = _transaction(func.pg_snapshot_xmin)
# No transaction has this id or a later one yet.
_NEXT = _transaction(func.pg_snapshot_xmax)


def _quarter_hour(moment: Any) -> ColumnElement[Any]:
    origin: ColumnElement[Any] = literal_column("'2000-01-01 00:00:00+00'::timestamptz")
    found: ColumnElement[Any] = func.date_bin(literal_column("'15 minutes'::interval"), moment, origin)
    return found


def entry_keys(entry: Any, starts_at: Any) -> dict[str, Any]:
    """The columns of the sums that tell them apart, of an entry. `entry`: `UsageEventRow`, or an alias of it."""
    return {
        "starts_at": starts_at,
        "project_id": entry.project_id,
        "key_id": entry.key_id,
        "end_user": func.coalesce(entry.end_user, literal_column("''", Text)),
        "kind": entry.kind,
        "requested_model": entry.requested_model,
        "model": entry.model,
        "service_tier": entry.service_tier,
        "batch": entry.batch_id.is_not(None),
    }


def entry_values(entry: Any) -> dict[str, Any]:
    """What an entry adds to its sums, by column.

    A correction adds amounts, and takes its entry out of the unpriced ones if it is the first that has them. Only what
    an answer of another job has saved may be unknown.
    """
    is_first = entry.correction == _NONE
    is_answer = and_(is_first, entry.attempt == _NONE)
    return {
        "requests": _if(and_(is_first, entry.final)),
        "cached_requests": _if(is_answer),
        "attempts": _if(and_(is_first, entry.attempt > _NONE)),
        **{name: getattr(entry, name) for name in TOKEN_COUNTS},
        "cost": entry.cost,
        "charge": entry.charge,
        "saved": case((is_answer, entry.saved), else_=_NONE),
        "unpriced": case((is_first, _if(_is_unpriced(entry))), else_=_unpriced_by_correction(entry)),
    }


def _if(condition: Any) -> ColumnElement[int]:
    return case((condition, _COUNT), else_=_NONE)


def _is_unpriced(entry: Any) -> ColumnElement[bool]:
    return or_(entry.cost.is_(None), entry.charge.is_(None))


def _unpriced_by_correction(entry: Any) -> ColumnElement[int]:
    """-1 if a correction is the one with which its entry has both amounts, otherwise 0."""
    earlier = aliased(UsageEventRow)

    def had(name: str) -> ColumnElement[bool]:
        before = (earlier.job_id == entry.job_id, earlier.attempt == entry.attempt)
        return exists().where(
            *before, earlier.correction < entry.correction, getattr(earlier, name).is_not(None)
        )  # fmt: skip

    complete = and_(*(or_(getattr(entry, name).is_not(None), had(name)) for name in ("cost", "charge")))
    return _if(and_(had("cost"), had("charge"))) - _if(complete)


def add_to_sums(rows: Insert) -> Insert:
    """Let an insert of sums add their values to those of the same keys."""
    row, added = UsageSumRow, rows.excluded
    values = {name: getattr(row, name) + added[name] for name in VALUES}
    engine = case((row.engine == added.engine, row.engine))
    return rows.on_conflict_do_update(index_elements=list(KEYS), set_={**values, "engine": engine})


AMOUNTS = ("cost", "charge", "saved")
KEYS = tuple(entry_keys(UsageEventRow, None))
VALUES = tuple(entry_values(UsageEventRow))


def sum_of(name: str, column: Any) -> ColumnElement[Any]:
    """The sum of a column of the sums, or of the same values of entries: an exact number, 0 if there is none.

    That of `saved` is NULL if one of the values is.
    """
    kind = Numeric if name in AMOUNTS else BigInteger
    total: ColumnElement[Any] = func.coalesce(func.sum(column), _NONE)
    if name == "saved":
        total = case((func.count(column) == func.count(), total))
    return cast(total, kind).label(name)


def _add_statement() -> Select[Any]:
    """Add the entries of the transactions from `lower` up to `upper` to the sums.

    Returns, by model, the number of entries (`entries`), of those that have no price (`unpriced`), and what entries
    cost that are no corrections (`cost`).
    """
    entry = UsageEventRow
    keys, values = entry_keys(entry, _quarter_hour(entry.ended_at)), entry_values(entry)
    # Unless all entries agree, it is not known.
    is_same = and_(func.count(entry.engine) == func.count(), func.min(entry.engine) == func.max(entry.engine))
    without_price = _if(and_(entry.correction == _NONE, _is_unpriced(entry)))
    portion = (
        select(
            *(expression.label(name) for name, expression in keys.items()),
            *(sum_of(name, expression) for name, expression in values.items()),
            case((is_same, func.min(entry.engine))).label("engine"),
            func.count().label("entries"),
            func.sum(without_price).label("without_price"),
            func.sum(case((entry.correction == _NONE, entry.cost))).label("own_cost"),
        )
        .where(entry.written_by >= bindparam("lower", type_=BigInteger))
        .where(entry.written_by < bindparam("upper", type_=BigInteger))
        .group_by(*keys.values())
        .cte("portion")
    )
    names = (*KEYS, *VALUES, "engine")
    sums = add_to_sums(insert(UsageSumRow).from_select(list(names), select(*(portion.c[name] for name in names))))
    return (
        select(
            portion.c.model,
            cast(func.sum(portion.c.entries), BigInteger).label("entries"),
            cast(func.sum(portion.c.without_price), BigInteger).label("unpriced"),
            cast(func.sum(portion.c.own_cost), Numeric).label("cost"),
        )
        .group_by(portion.c.model)
        .add_cte(sums.cte("sums"))
    )


_ADD = _add_statement()


def _is_waiting(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether there are entries that are not in the sums."""
    return exists().where(UsageEventRow.written_by >= UsageWatermarkRow.summed_before, *conditions)


_STATE = Prepared(
    select(
        UsageWatermarkRow.summed_before,
        _NEXT.label("next"),
        or_(UsageWatermarkRow.summed_before > _HORIZON, _is_waiting(UsageEventRow.written_by < _HORIZON)).label("due"),
        _is_waiting().label("behind"),
    ).where(UsageWatermarkRow.id == literal_column(str(_WATERMARK)))
)


@dataclass(frozen=True, slots=True)
class SumsState:
    """How far the sums are.

    All entries of transactions before `summed_before` are in them. `next`: no transaction has this id or a later one
    yet. `due`: there is something to do. `behind`: there are entries that are not in the sums, of which some may have
    to wait for a transaction that is still open.
    """

    summed_before: int
    next: int
    due: bool
    behind: bool


@dataclass(frozen=True, slots=True)
class Added:
    """What a step has added: the number of entries, and by model, of those without a price, and what they cost.

    Corrections are not in `costs`.
    """

    entries: int
    unpriced: Mapping[str, int] = field(default_factory=dict)
    costs: Mapping[str, Decimal] = field(default_factory=dict)


class UsageSums(Store):
    """Adds the ledger's entries to the sums. Any number of processes may try: one of them does it."""

    async def state(self) -> SumsState:
        """Read how far the sums are."""
        (row,) = await _STATE.run(self._engine, {})
        return SumsState(row.summed_before, row.next, row.due, row.behind)

    async def add(self, portion: int = PORTION) -> Added | None:
        """Add about the next `portion` entries. None if another process does that now."""
        async with transaction(self._engine) as connection:
            watermark = select(UsageWatermarkRow.summed_before).where(UsageWatermarkRow.id == _WATERMARK)
            lower = await connection.scalar(watermark.with_for_update(skip_locked=True))
            if lower is None:
                return None
            horizon: int = (await connection.execute(select(_HORIZON))).scalar_one()
            if lower > horizon:
                await _adopt(connection, portion)
                return Added(0)
            upper = await _upper(connection, lower, horizon, portion)
            rows = (await connection.execute(_ADD, {"lower": lower, "upper": upper})).all()
            await _move(connection, upper)
        unpriced = {row.model: row.unpriced for row in rows if row.unpriced}
        costs = {row.model: row.cost for row in rows if row.cost}
        return Added(sum(row.entries for row in rows), unpriced, costs)


async def _upper(connection: AsyncConnection, lower: int, horizon: int, portion: int) -> int:
    """The transaction up to which to add entries: the horizon, or one before it if there are more than a portion.

    The entries of one transaction are added together.
    """
    written_by = UsageEventRow.written_by
    beyond = select(written_by).where(written_by >= lower, written_by < horizon).order_by(written_by).offset(portion)
    found: int | None = await connection.scalar(beyond.limit(1))
    return horizon if found is None else max(found, lower + 1)


async def _adopt(connection: AsyncConnection, portion: int) -> None:
    """Prepare a ledger for its sums that was restored into another cluster, whose transaction ids are lower.

    Its entries get ids of transactions that have ended here, a portion of them at a time. Then the sums are made anew.
    """
    row = UsageEventRow
    key = tuple_(row.job_id, row.attempt, row.correction)
    foreign = select(row.job_id, row.attempt, row.correction).where(row.written_by >= _NEXT).limit(portion)
    # Spread over many transactions, because the entries of one are added together.
    spread = cast(func.floor(func.random() * _HORIZON), BigInteger)
    if (await connection.execute(update(row).where(key.in_(foreign)).values(written_by=spread))).rowcount:
        return
    await connection.execute(delete(UsageSumRow))
    await _move(connection, 0)


async def _move(connection: AsyncConnection, summed_before: int) -> None:
    values = {"summed_before": summed_before, "updated_at": func.now()}
    await connection.execute(update(UsageWatermarkRow).where(UsageWatermarkRow.id == _WATERMARK).values(values))
