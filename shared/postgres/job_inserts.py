"""The statements that create jobs.

`insert_queued` is a seam, where everything that must happen once per new job belongs: it is the only SQL that creates a
job. Only jobs that the response cache answers, which have ended at once, are created by `insert_answered`. A test
checks that no other SQL does either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import (
    CTE,
    Boolean,
    Integer,
    Select,
    Text,
    case,
    false,
    func,
    insert,
    literal,
    literal_column,
    null,
    or_,
    select,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import aliased

from shared.domain.decisions import CacheOutcome
from shared.domain.job import JobStatus
from shared.postgres.job_ends import with_effects
from shared.postgres.job_rows import ARCHIVE_PAGE, SUMMARY_COLUMNS, answered_log
from shared.postgres.store import Records
from shared.postgres.tables import CachedAnswerRow, JobRow


def insert_queued(
    new: Records, values: Mapping[Any, Any], narrow: Callable[[Select[Any]], Select[Any]] = lambda records: records
) -> Any:
    """The only SQL that creates open jobs, and the entry seam: inserts one `queued` job per record.

    A record has at least an id, a model, a request, its number of choices and metadata; `values` sets further columns.
    Whatever must be written exactly once with a new job (such as a budget reservation) joins this statement as a CTE:
    in the same transaction, without an extra round trip. A dispatcher that withholds jobs sets `JobRow.dispatched_at`
    to NULL here, so that redelivery does not take their missing messages for lost ones. `narrow` adds conditions to the
    query of the records.
    """
    columns = {**_columns(new, values), JobRow.status: literal(JobStatus.QUEUED.value)}
    return upsert(JobRow).from_select(list(columns), narrow(select(*columns.values())))


def cached_answers(records: Records) -> Select[Any]:
    """Select the size in bytes of the cached answer of each record that has one, and its id.

    A record has an id, a `cache_key`, a project, a model and, if it is not None, the largest age of the answer,
    `max_age_s`.
    """
    return _found(select(records.id, CachedAnswerRow.bytes), records, aliased(JobRow, name="source"))


def insert_answered(
    new: Records, values: Mapping[Any, Any], *, streams: bool = False, responses: Select[Any] | None = None
) -> tuple[CTE, Select[Any]]:
    """The only SQL that creates jobs which have ended: inserts a `completed` job per record that has a cached answer.

    Records and `values` are as in `insert_queued`, and records also as in `cached_answers`. Output and log stay in the
    row of the job that the entry names, which is locked: a later deletion of that job finds the inserted one. If it was
    deleted before, there is no answer. Returns the inserted rows, for further parts of the statement, and the
    statement, which returns their columns and the output. Whatever joins `end_statement` joins this one too.

    `streams`: records also have a Boolean of this name, and the statement returns for those with true the first page of
    the log. `responses` selects the ids of the records that are responses, whose rows the same statement inserts.
    """
    source = aliased(JobRow, name="source")
    decision = func.jsonb_build_object(
        "outcome",
        literal(CacheOutcome.HIT.value, Text),
        "source",
        source.id,
        "age_s",
        func.greatest(0, func.floor(_age_s(source))),
        "fingerprint",
        func.coalesce(source.attempts[-1]["fingerprint"], source.decisions["cache"]["fingerprint"]),
    )
    earlier = sql_cast(func.coalesce(new.decisions, sql_cast(literal("{}"), JSONB)), JSONB)
    columns = {
        **_columns(new, values),
        JobRow.status: literal(JobStatus.COMPLETED.value),
        JobRow.decisions: earlier.op("||")(func.jsonb_build_object("cache", decision, type_=JSONB)),
        JobRow.started_at: func.now(),
        JobRow.first_token_at: func.now(),
        JobRow.finished_at: func.now(),
        JobRow.usage: source.usage,
        JobRow.answered_by: source.id,
    }
    found = _found(select(*columns.values()), new, source).with_for_update(of=source, read=True)
    ended = (
        insert(JobRow)
        .from_select(list(columns), found)
        .returning(
            *SUMMARY_COLUMNS,
            JobRow.batch_id,
            JobRow.answered_by,
            JobRow.cache_key,
            JobRow.webhook,
            null().cast(JSONB).label("upstream"),
            literal_column("false", Boolean).label("cacheable"),
            literal_column("0", Integer).label("answer_bytes"),
        )
        .cte("ended")
    )
    answer = aliased(JobRow, name="answer")
    output = select(sql_cast(answer.output, Text)).where(answer.id == ended.c.answered_by).scalar_subquery()
    row = [*ended.c, output.label("output")]
    if streams:  # the client waits for the first event, which another query would delay
        wanted = select(new.streams).where(new.id == ended.c.id).scalar_subquery()
        start = func.substr(answered_log(answer.log), literal_column("1"), literal_column(str(ARCHIVE_PAGE)))
        log = select(start).where(answer.id == ended.c.answered_by).scalar_subquery()
        row.append(case((wanted, log)).label("log_start"))
    if responses is None:  # none of them is a response
        responses = select(null().cast(Text)).where(false())
    return ended, with_effects(select(*row), ended, answered_by=ended.c.answered_by, responses=responses)


def _found(query: Select[Any], records: Records, source: Any) -> Select[Any]:
    """Join the entry of the response cache that answers a record, and the job that it names."""
    entry = CachedAnswerRow
    return query.where(
        entry.key == records.cache_key,
        entry.project_id == records.project_id,
        entry.model == records.model,
        entry.expires_at > func.now(),
        source.id == entry.job_id,
        source.project_id == records.project_id,
        source.model == records.model,
        source.status == literal_column(f"'{JobStatus.COMPLETED.value}'"),
        source.deleted_at.is_(None),
        source.log.is_not(None),
        or_(records.max_age_s.is_(None), _age_s(source) <= records.max_age_s),
    )


def _age_s(source: Any) -> Any:
    return func.extract("epoch", func.now() - source.finished_at)


def _columns(new: Records, values: Mapping[Any, Any]) -> dict[Any, Any]:
    """The columns of a new job of any status."""
    return {
        JobRow.id: new.id,
        JobRow.model: new.model,
        JobRow.request: new.request,
        JobRow.choices: new.choices,
        JobRow.job_metadata: new.metadata,
        # Every job is released to the queue at once, unless `values` say otherwise.
        JobRow.dispatched_at: func.now(),
        **values,
    }
