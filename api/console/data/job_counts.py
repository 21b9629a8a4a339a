"""The SQL that counts ended jobs by minute: for charts, and for the statistics that are kept."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, and_, case, cast, exists, func, literal_column, select, tuple_

from api.console.data.histogram import bin_of
from shared.domain.priorities import BATCH_PRIORITY
from shared.postgres.tables import JobRow, PastPauseRow

INTERACTIVE = JobRow.priority < literal_column(str(BATCH_PRIORITY))
# Jobs that the response cache answered, or that got the answer of another one, say nothing about workers.
_RAN = JobRow.attempt > 0
# The time of a client's request. The server's own jobs, such as summaries, are no answers that a reader waits for.
# Neither are times during which an operator had paused the queue: nobody was to be served then.
_PAUSED = exists().where(
    PastPauseRow.model == JobRow.model,
    PastPauseRow.resumed_at > JobRow.created_at,
    PastPauseRow.paused_at < JobRow.started_at,
)
_TIMED = and_(INTERACTIVE, _RAN, JobRow.kind.is_(None), ~_PAUSED)


def counted(start: Any, end: Any, *, model: Any = None) -> Select[Any]:
    """Count the jobs that ended from `start` to `end`, by minute and model, interactive ones apart.

    Rows have one of the columns `status`, `error_code`, `first_token` and `wait`, the last two as bins of a histogram,
    and the number of `jobs` with it. Those with a status also have the output `tokens` that workers generated.
    """
    conditions: list[ColumnElement[bool]] = [JobRow.finished_at >= start, JobRow.finished_at < end]
    if model is not None:
        conditions.append(JobRow.model == model)
    ended = (
        select(
            func.date_trunc("minute", JobRow.finished_at).label("minute"),
            JobRow.model,
            INTERACTIVE.label("interactive"),
            JobRow.status,
            JobRow.error_code,
            case((_TIMED, bin_of(JobRow.first_token_at - JobRow.created_at))).label("first_token"),
            case((_TIMED, bin_of(JobRow.started_at - JobRow.created_at))).label("wait"),
            case((_RAN, cast(JobRow.usage["completion_tokens"].astext, BigInteger))).label("tokens"),
        )
        .where(*conditions)
        .subquery("ended")
    )
    group = (ended.c.minute, ended.c.model, ended.c.interactive)
    kinds = (ended.c.status, ended.c.error_code, ended.c.first_token, ended.c.wait)
    # One pass over the jobs for all four; a set whose own column is NULL has no row.
    return (
        select(
            *group,
            *kinds,
            func.count().label("jobs"),
            case((func.grouping(ended.c.status) == 0, func.coalesce(func.sum(ended.c.tokens), 0))).label("tokens"),
        )
        .group_by(func.grouping_sets(*(tuple_(*group, kind) for kind in kinds)))
        .having(func.num_nonnulls(*kinds) > 0)
    )


def minute_of(moment: datetime) -> datetime:
    """The start of the minute of a moment."""
    return moment.replace(second=0, microsecond=0)
