"""SQL of the ledger: it prices the entries of jobs that end, and inserts them in the statement that ends the jobs.

An amount is the sum of the token counts, each times its rate per million tokens (`amount`), in exact arithmetic. Where
amounts come from is the same everywhere: the end of a job, a new calculation with other prices, and an estimate differ
only in their counts and in the price that they use (`price_at`).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import reduce
from typing import Any

from sqlalchemy import (
    CTE,
    Boolean,
    ColumnElement,
    Integer,
    SmallInteger,
    Text,
    and_,
    case,
    column,
    func,
    literal_column,
    null,
    select,
    true,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import aliased
from sqlalchemy.sql.selectable import LateralFromClause

from shared.domain.job import SUCCEEDED
from shared.domain.ledger import ANSWERED, DEFAULT_TIER, GENERATE, Source
from shared.postgres.tables import JobRow, Timestamp
from shared.postgres.usage_tables import TOKEN_COUNTS, PriceRow, UsageEventRow

_ZERO = literal_column("0", Integer)
_ONE = literal_column("1", Integer)
# Rates are per million tokens. A product is exact, which a quotient need not be.
_MILLIONTH: ColumnElement[Decimal] = literal_column("0.000001")


# The columns of a job that its entries have, too.
OWNER_COLUMNS = (
    JobRow.project_id,
    JobRow.key_id,
    JobRow.end_user,
    JobRow.requested_model,
    JobRow.kind,
    JobRow.batch_id,
)


def amount(counts: Mapping[str, Any], price: Any) -> ColumnElement[Decimal]:
    """What token counts cost at a price, in dollars.

    `counts` are some of `TOKEN_COUNTS`, by name; the others are 0. `price` has a column for the rate of each: the
    columns of `price_at`, or those of `PriceRow`. NULL if a count that is not 0 has no rate, or if there is no price.
    Reasoning without a rate of its own costs as much as other output. Cached input has no such substitute.
    """
    parts: list[ColumnElement[Any]] = [_part(count, _rate(price, name)) for name, count in counts.items()]
    return reduce(operator.add, parts) * _MILLIONTH


def _part(count: Any, rate: Any) -> ColumnElement[Any]:
    return case((count == _ZERO, _ZERO), else_=count * rate)


def _rate(price: Any, name: str) -> Any:
    rate = getattr(price, name)
    return func.coalesce(rate, price.output_text) if name == "output_reasoning" else rate


def price_at(model: Any, tier: Any, moment: Any, input_tokens: Any) -> LateralFromClause:
    """The price of a model and a service tier that is in force at a time, for a request with this many input tokens.

    Of the prices that had come into force by then, it is one of the latest, and of these the one for the longest input.
    To be joined from the left: there may be none.
    """
    row = aliased(PriceRow)
    return (
        select(row)
        .where(row.model == model, row.tier == tier, row.valid_from <= moment, row.from_input_tokens <= input_tokens)
        .order_by(row.valid_from.desc(), row.from_input_tokens.desc())
        .limit(_ONE)
        .lateral("price")
    )


def price_of(entry: Any) -> LateralFromClause:
    """The price of an entry: that of its model and tier when it ended. `entry` is as in `own_counts`.

    Cost and charge have the same price. The length of the input is that which is charged, so that tokens which had to
    be processed again do not raise the price.
    """
    length = func.coalesce(func.nullif(_input_of(charged_counts(entry)), _ZERO), _input_of(own_counts(entry)))
    return price_at(entry.model, entry.service_tier, entry.ended_at, length)


def own_counts(entry: Any) -> dict[str, Any]:
    """The token counts that the cost of an entry is for. `entry`: `UsageEventRow`, or columns of these names."""
    return {name: getattr(entry, name) for name in TOKEN_COUNTS}


def charged_counts(entry: Any) -> dict[str, Any]:
    """The token counts that the charge of an entry is for: those in `charged`, or else its own."""
    return {name: _charged(entry, name) for name in TOKEN_COUNTS}


def _charged(entry: Any, name: str) -> ColumnElement[int]:
    key: ColumnElement[str] = literal_column(f"'{name}'", Text)
    count = func.coalesce(sql_cast(entry.charged[key].astext, Integer), _ZERO)
    return case((entry.charged.is_(None), getattr(entry, name)), else_=count)


def _input_of(counts: Mapping[str, Any]) -> ColumnElement[int]:
    found: ColumnElement[int] = reduce(operator.add, [counts[name] for name in counts if name.startswith("input")])
    return found


def insert_entries(ended: CTE) -> CTE:
    """Insert the entries of jobs that end.

    `ended` has the columns `id`, `model`, `OWNER_COLUMNS`, `decisions` and `entries`, a list of
    `shared.domain.ledger.Entry.stored`. Returns the inserted rows: `job_id`, `attempt`, `final`, `charge`.
    """
    entry = (
        func.jsonb_to_recordset(ended.c.entries)
        .table_valued(
            column("attempt", SmallInteger),
            column("ended_at", Timestamp),
            column("model", Text),
            column("engine", Text),
            column("service_tier", Text),
            column("outcome", Text),
            column("final", Boolean),
            *(column(name, Integer) for name in TOKEN_COUNTS),
            column("charged", JSONB),
            column("counted", JSONB),
            column("source", Text),
        )
        .render_derived("entry", with_types=True)
    )
    own, price = own_counts(entry.c), price_of(entry.c)
    values = {
        **_columns_of_job(ended),
        "attempt": entry.c.attempt,
        "ended_at": entry.c.ended_at,
        "model": entry.c.model,
        "engine": entry.c.engine,
        "service_tier": entry.c.service_tier,
        "outcome": entry.c.outcome,
        "final": entry.c.final,
        **own,
        "total_tokens": reduce(operator.add, own.values()),
        "charged": entry.c.charged,
        "counted": entry.c.counted,
        "source": entry.c.source,
        "price_id": price.c.id,
        "cost": amount(own, price.c),
        "charge": amount(charged_counts(entry.c), price.c),
    }
    rows = select(*values.values()).join_from(ended, entry, true()).outerjoin(price, true())
    return _inserted(values, rows)


def insert_answers(ended: CTE, source: Any) -> CTE:
    """Insert the entries of jobs that end with the answer of another one, the job `source`: no attempt, no tokens.

    `ended` has the columns as for `insert_entries`, and `status` and `finished_at` instead of `entries`. What an answer
    has saved is what `source` was charged, and its engine is that of `source`. Returns rows as `insert_entries`.
    """
    row = aliased(UsageEventRow)
    answer = (
        select(row.engine, row.charge)
        .where(row.job_id == source, row.final, row.correction == _ZERO)
        .limit(_ONE)
        .lateral("answer")
    )
    values = {
        **_columns_of_job(ended),
        "attempt": _ZERO,
        "ended_at": ended.c.finished_at,
        "model": ended.c.model,
        "engine": answer.c.engine,
        "service_tier": _text(DEFAULT_TIER),
        "outcome": _text(ANSWERED),
        "final": literal_column("true", Boolean),
        **dict.fromkeys((*TOKEN_COUNTS, "total_tokens"), _ZERO),
        "charged": null(),
        "source": _text(Source.ENGINE),
        "price_id": null(),
        "cost": _ZERO,
        "charge": _ZERO,
        "saved": answer.c.charge,
    }
    rows = select(*values.values()).join_from(ended, answer, true(), isouter=True)
    rows = rows.where(ended.c.status.in_(_texts(SUCCEEDED)))
    return _inserted(values, rows)


def charges(ended: CTE, entries: CTE) -> CTE:
    """What each of the jobs that end is charged: `job_id`, `charge`.

    0 for a job without an entry, which has had no attempt; NULL if a part of it has no price. `entries` are those that
    were inserted for the jobs.
    """
    last = and_(entries.c.job_id == ended.c.id, entries.c.final)
    charge = case((entries.c.job_id.is_(None), _ZERO), else_=entries.c.charge)
    rows = select(ended.c.id.label("job_id"), charge.label("charge")).join_from(ended, entries, last, isouter=True)
    return rows.cte("charges")


def _columns_of_job(ended: CTE) -> dict[str, Any]:
    context: Any = ended.c.decisions["context"]["conversation"].astext
    return {
        "job_id": ended.c.id,
        "kind": func.coalesce(ended.c.kind, _text(GENERATE)),
        "project_id": ended.c.project_id,
        "key_id": ended.c.key_id,
        "end_user": ended.c.end_user,
        "conversation": context,
        "requested_model": func.coalesce(ended.c.requested_model, ended.c.model),
        "batch_id": ended.c.batch_id,
    }


def _inserted(values: Mapping[str, Any], rows: Any) -> CTE:
    # A job ends once. If it has entries nevertheless, they must not keep the jobs of its statement from ending.
    statement = upsert(UsageEventRow).from_select(list(values), rows).on_conflict_do_nothing()
    returned = (UsageEventRow.job_id, UsageEventRow.attempt, UsageEventRow.final, UsageEventRow.charge)
    return statement.returning(*returned).cte("ledger")


def _text(value: str) -> ColumnElement[str]:
    return literal_column(f"'{value}'::text", Text)


def _texts(values: Iterable[str]) -> list[ColumnElement[str]]:
    return [_text(value) for value in values]
