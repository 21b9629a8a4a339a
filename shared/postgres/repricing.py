"""SQL that prices entries of the ledger again, and appends the differences as corrections.

The amounts of an entry are those of its row and of its corrections together. Rows are never changed: a correction has
no tokens, the time of its entry, and what has to be added to the amounts. A part that had no price and has none now is
NULL in the correction too.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Numeric,
    SmallInteger,
    Text,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import aliased

from shared.postgres.ledger import amount, charged_counts, own_counts, price_of
from shared.postgres.store import Store
from shared.postgres.tables import Timestamp
from shared.postgres.usage_tables import TOKEN_COUNTS, UsageEventRow

# Entries that are priced by one statement: at most some tenths of a second.
PORTION = 5000
_ZERO = literal_column("0", Integer)
# The columns that a correction has from its entry.
_COPIED = (
    "job_id", "attempt", "ended_at", "kind", "project_id", "key_id", "end_user", "conversation", "requested_model",
    "model", "engine", "service_tier", "batch_id", "outcome", "final", "source",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Position:
    """Up to which entry of a project the entries were priced, in the order of their ends."""

    project_id: int
    ended_at: datetime
    job_id: str = ""
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Repriced:
    """What a portion has come to.

    `checked` entries were priced, and `corrected` differ from before by `cost` and `charge` together; `unpriced` have a
    part without a price. `position`: the last of them; None if there was none.
    """

    checked: int
    corrected: int
    unpriced: int
    cost: Decimal
    charge: Decimal
    position: Position | None


class Repricing(Store):
    """Prices entries again."""

    async def next_project(self, after: int) -> int | None:
        """The project with the lowest id above `after` that has entries. Deleted projects have some too."""
        row = await self._first(select(func.min(UsageEventRow.project_id)).where(UsageEventRow.project_id > after))
        return row[0] if row is not None else None

    async def reprice(
        self, after: Position, *, model: str | None = None, dry_run: bool = False, portion: int = PORTION
    ) -> Repriced:
        """Price the entries of a project that follow a position, at most `portion` of them, with today's prices.

        `model`: only entries that this model has served. `dry_run`: append nothing. Appended corrections are committed.
        """
        parameters = {
            "project_id": after.project_id,
            "ended_at": after.ended_at,
            "job_id": after.job_id,
            "attempt": after.attempt,
            "portion": portion,
        }
        if model is not None:
            parameters["model"] = model
        statement = _statement(one_model=model is not None, dry_run=dry_run)
        async with self._engine.connect() as connection:
            row = (await connection.execute(statement, parameters)).one()
        last = None if row.job_id is None else Position(after.project_id, row.ended_at, row.job_id, row.attempt)
        return Repriced(row.checked, row.corrected, row.unpriced, row.cost, row.charge, last)


def _statement(*, one_model: bool, dry_run: bool) -> Any:
    entries = _entries(one_model=one_model)
    priced = _priced(entries)
    statement = select(*_totals(priced))
    return statement if dry_run else statement.add_cte(_appended(priced))


def _entries(*, one_model: bool) -> Any:
    """The entries of a portion: those of attempts, without corrections. A range of the index `usage_events_project`."""
    row = UsageEventRow
    ended_at = bindparam("ended_at", type_=Timestamp)
    position = tuple_(ended_at, bindparam("job_id", type_=Text), bindparam("attempt", type_=SmallInteger))
    conditions = [
        row.project_id == bindparam("project_id", type_=BigInteger),
        row.ended_at >= ended_at,
        tuple_(row.ended_at, row.job_id, row.attempt) > position,
        row.correction == _ZERO,
        row.attempt > _ZERO,
    ]
    if one_model:
        conditions.append(row.model == bindparam("model", type_=Text))
    order = (row.ended_at, row.job_id, row.attempt)
    columns = [getattr(row, name) for name in (*_COPIED, *TOKEN_COUNTS, "charged")]
    portion = bindparam("portion", type_=Integer)
    return select(*columns).where(*conditions).order_by(*order).limit(portion).cte("entries")


def _priced(entries: Any) -> Any:
    """The entries with their amounts until now (`old_cost`, `old_charge`), and those at today's prices."""
    known = aliased(UsageEventRow)
    sums = (
        select(
            func.sum(known.cost).label("cost"),
            func.sum(known.charge).label("charge"),
            func.max(known.correction).label("correction"),
        )
        .where(known.job_id == entries.c.job_id, known.attempt == entries.c.attempt)
        .lateral("sums")
    )
    price = price_of(entries.c)
    return (
        select(
            *entries.c,
            price.c.id.label("price_id"),
            sums.c.correction,
            sums.c.cost.label("old_cost"),
            sums.c.charge.label("old_charge"),
            amount(own_counts(entries.c), price.c).label("new_cost"),
            amount(charged_counts(entries.c), price.c).label("new_charge"),
        )
        .join_from(entries, sums, true())
        .outerjoin(price, true())
        .cte("priced")
    )


def _differs(old: Any, new: Any) -> ColumnElement[bool]:
    # A price that has gone leaves the amount as it is.
    return and_(new.is_not(None), old.is_distinct_from(new))


def _difference(old: Any, new: Any) -> ColumnElement[Decimal]:
    """What a correction adds to an amount: NULL only if there was none, and is none."""
    return case((new.is_(None) & old.is_(None), null()), else_=func.coalesce(new - func.coalesce(old, _ZERO), _ZERO))


def _is_corrected(priced: Any) -> ColumnElement[bool]:
    columns = priced.c
    return or_(_differs(columns.old_cost, columns.new_cost), _differs(columns.old_charge, columns.new_charge))


def _appended(priced: Any) -> Any:
    columns = priced.c
    values = {
        **{name: columns[name] for name in _COPIED},
        "correction": cast(columns.correction + literal_column("1"), SmallInteger),
        **dict.fromkeys((*TOKEN_COUNTS, "total_tokens"), _ZERO),
        "price_id": columns.price_id,
        "cost": _difference(columns.old_cost, columns.new_cost),
        "charge": _difference(columns.old_charge, columns.new_charge),
    }
    rows = select(*values.values()).where(_is_corrected(priced))
    # Another process that prices the same entries has appended the same correction.
    return upsert(UsageEventRow).from_select(list(values), rows).on_conflict_do_nothing().cte("appended")


def _totals(priced: Any) -> list[Any]:
    columns = priced.c
    order = (columns.ended_at.desc(), columns.job_id.desc(), columns.attempt.desc())
    is_corrected = _is_corrected(priced)

    def total(old: Any, new: Any) -> Any:
        difference = func.sum(_difference(old, new)).filter(is_corrected)
        return cast(func.coalesce(difference, _ZERO), Numeric)

    def last(name: str) -> Any:
        return select(columns[name]).order_by(*order).limit(1).scalar_subquery().label(name)

    unpriced = or_(
        and_(columns.old_cost.is_(None), columns.new_cost.is_(None)),
        and_(columns.old_charge.is_(None), columns.new_charge.is_(None)),
    )
    return [
        func.count().label("checked"),
        func.count().filter(is_corrected).label("corrected"),
        func.count().filter(unpriced).label("unpriced"),
        total(columns.old_cost, columns.new_cost).label("cost"),
        total(columns.old_charge, columns.new_charge).label("charge"),
        *(last(name) for name in ("ended_at", "job_id", "attempt")),
    ]
