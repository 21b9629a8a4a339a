"""SQL of the request log that belongs to jobs: their ends write rows, and their deletion deletes bodies."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    CTE,
    Boolean,
    ColumnElement,
    Integer,
    Text,
    and_,
    case,
    delete,
    func,
    literal,
    literal_column,
    null,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import select

from shared.domain.log_level import DEFAULT_LOG_LEVEL, LogLevel
from shared.postgres.request_log_tables import RequestBodyRow, RequestLogRow
from shared.postgres.tables import JobRow

# The columns that a statement which ends jobs returns for `insert_log_rows`, beside those of the ledger.
LOGGED_COLUMNS = (
    JobRow.log_level,
    JobRow.status,
    JobRow.created_at,
    JobRow.first_token_at,
    JobRow.finished_at,
    JobRow.usage,
    JobRow.error_code,
    JobRow.request_id,
)
_TRUE, _FALSE = literal_column("true", Boolean), literal_column("false", Boolean)


def _text(value: str) -> Any:
    return literal_column(f"'{value}'::text", Text)


def insert_log_rows(ended: CTE, *, answered: bool) -> CTE:
    """Insert a row of the request log for each job that ends, unless nothing is to be kept of it.

    `ended` has the columns `id`, `model`, `LOGGED_COLUMNS`, those of the ledger, and `decisions`; and, if it is known
    whether the model has refused to answer, `refused` and `refusal_source`. `answered`: the jobs end with the answer of
    another job.

    If a body is to be kept, the row is marked as `pending`: it is written afterwards, by an API process.
    """
    level = func.coalesce(ended.c.log_level, _text(DEFAULT_LOG_LEVEL))
    keeps_body = level.in_([_text(one) for one in LogLevel if one.keeps_body])
    values = {
        "job_id": ended.c.id,
        "ended_at": ended.c.finished_at,
        "project_id": ended.c.project_id,
        "key_id": ended.c.key_id,
        "end_user": ended.c.end_user,
        "conversation": ended.c.decisions["context"]["conversation"].astext,
        "request_id": ended.c.request_id,
        "batch_id": ended.c.batch_id,
        "kind": ended.c.kind,
        "model": ended.c.model,
        "requested_model": func.coalesce(ended.c.requested_model, ended.c.model),
        "status": ended.c.status,
        "error_code": ended.c.error_code,
        "created_at": ended.c.created_at,
        "first_token_at": ended.c.first_token_at,
        "input_tokens": _count(ended, "prompt_tokens"),
        "output_tokens": _count(ended, "completion_tokens"),
        "answered": _TRUE if answered else _FALSE,
        "level": level,
        "body": case((keeps_body, _text("pending")), else_=_text("none")),
        "refused": ended.c.get("refused", sql_cast(null(), Boolean)),
        "refusal_source": ended.c.get("refusal_source", sql_cast(null(), Text)),
    }
    # A level that only a newer version knows keeps nothing (`stored_level`).
    is_kept = level.in_([_text(one) for one in LogLevel if one is not LogLevel.NONE])
    rows = select(*values.values()).where(is_kept)
    # A job ends once. If it has a row nevertheless, that must not keep the jobs of its statement from ending.
    return upsert(RequestLogRow).from_select(list(values), rows).on_conflict_do_nothing().cte("request_log_rows")


def _count(ended: CTE, name: str) -> Any:
    return sql_cast(ended.c.usage[name].astext, Integer)


# Condition: there is a body, or one is to be written.
HAS_BODY = RequestLogRow.body.in_([_text("kept"), _text("pending")])


async def delete_bodies(connection: AsyncConnection, jobs: Sequence[tuple[str, datetime]]) -> None:
    """Delete the bodies of ended jobs, each with the time of its end, and let none be written any more.

    The rows remain, marked as `deleted`. To be run in the transaction that deletes the jobs, after that: if it is
    rolled back, nothing is deleted, and once it is committed, nothing is left. It waits for whoever is writing these
    bodies.
    """
    # In this order, as an erasure: two that lock some of the same rows wait for each other in one direction only.
    in_order = (RequestLogRow.ended_at, RequestLogRow.job_id)
    of_rows = _of(RequestLogRow, jobs)
    await connection.execute(select(RequestLogRow.job_id).where(of_rows).order_by(*in_order).with_for_update())
    await connection.execute(update(RequestLogRow).where(of_rows, HAS_BODY).values(body="deleted"))
    # A statement of its own: it sees the bodies that were written while the first one waited.
    await connection.execute(delete(RequestBodyRow).where(_of(RequestBodyRow, jobs)))


def _of(table: type[RequestLogRow | RequestBodyRow], jobs: Sequence[tuple[str, datetime]]) -> ColumnElement[bool]:
    """Condition: the row is of one of these jobs. The times bound the partitions that are read."""
    job_ids, times = zip(*jobs, strict=True)
    return and_(
        table.job_id == func.any(literal([*job_ids], ARRAY(Text))), table.ended_at.between(min(times), max(times))
    )
