"""SQL for the rows of jobs: the columns to read, and the statements and conditions that stores share.

Two statements here are seams, where everything that must happen once per job belongs: `insert_queued` is the only SQL
that creates a job, and `end_statement` is the only SQL that ends one. A third one does both: `insert_answered` creates
jobs that the response cache answers. A test checks that no other SQL does either.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import (
    ARRAY,
    CTE,
    JSON,
    BigInteger,
    Boolean,
    ColumnElement,
    Double,
    Integer,
    Select,
    SmallInteger,
    Text,
    and_,
    bindparam,
    case,
    column,
    delete,
    func,
    insert,
    literal,
    literal_column,
    null,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB, distinct_on
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import aliased

from shared.domain.decisions import NO_DECISIONS, CacheOutcome, Decisions
from shared.domain.job import (
    RUNNING,
    TERMINAL,
    Attempt,
    AttemptOutcome,
    Choice,
    Failure,
    Job,
    JobStatus,
    JobSummary,
    Usage,
)
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.request_context import RequestContext
from shared.domain.result import JobResult
from shared.postgres.followers import (
    ANSWER_COLUMNS,
    CHANGE,
    FOLLOWS,
    LEADER,
    LEADER_COLUMNS,
    PORTION_BYTES,
    SUCCEEDED_BY_FOLLOWER,
    Ended,
    FollowerChange,
    changed_rows,
    is_waiting,
    leader_of,
    promote_followers,
    read_change,
    settle_followers,
)
from shared.postgres.prepared import Prepared
from shared.postgres.store import Encoded, Records, Store, readable, seconds
from shared.postgres.tables import (
    CachedAnswerRow,
    JobRow,
    ResponseRow,
    Timestamp,
    UpstreamCancellationRow,
    WorkerRow,
)
from shared.postgres.upstream_cancellations import stored_state
from shared.runtime import chunked_json
from shared.runtime.offload import INLINE_BYTES, off_loop
from shared.runtime.outages import is_database_outage

logger = logging.getLogger(__name__)

# With literals: if the status were a parameter, the generic plan, which PostgreSQL may use from the sixth execution on,
# could not use the partial indexes of queued and of running jobs.
IS_QUEUED = JobRow.status == literal_column(f"'{JobStatus.QUEUED.value}'")
IS_RUNNING = JobRow.status.in_([literal_column(f"'{status.value}'") for status in RUNNING])

# Suffix of `worker` in the row of a job whose claim was revoked or released.
LOST = "/lost"

SUMMARY_COLUMNS = (
    JobRow.id,
    JobRow.project_id,
    JobRow.key_id,
    JobRow.end_user,
    JobRow.model,
    JobRow.status,
    JobRow.priority,
    JobRow.job_metadata,
    JobRow.created_at,
    JobRow.start_before,
    JobRow.finish_before,
    JobRow.not_before,
    JobRow.deferred_since,
    JobRow.attempt,
    JobRow.deaths,
    JobRow.suspect,
    JobRow.exposures,
    JobRow.worker,
    JobRow.attempt_started_at,
    JobRow.attempts,
    JobRow.started_at,
    JobRow.first_token_at,
    JobRow.finished_at,
    JobRow.usage,
    JobRow.error_code,
    JobRow.error_message,
    JobRow.error_param,
    JobRow.request_id,
    JobRow.traceparent,
    JobRow.choices,
    JobRow.requested_model,
    JobRow.kind,
    JobRow.decisions,
    LEADER,
    JobRow.continues,
)
# The timings in the last line of a log.
_TIMINGS = r'"timings":\{[^{}]*\}'
# Those in the log of a completed job end the log: they are looked for in this many of its last characters. Those of a
# job that did not wait.
_LAST_TIMINGS = _TIMINGS + r"\}$"
_NO_TIMINGS = '"timings":{"queued_ms":0,"ttft_ms":0,"total_ms":0}}'
_LAST_LINE = 400

# The job whose answer the response cache has given to this one, if it has answered this one.
_ANSWER = aliased(JobRow, name="answer")


def _answered(own: Any, of_answer: Any) -> Any:
    """A job's own value, or that of the job that has its answer; NULL once the job was deleted."""
    shared = select(of_answer).where(_ANSWER.id == JobRow.answered_by).correlate(JobRow).scalar_subquery()
    return case((JobRow.deleted_at.is_not(None), null()), (JobRow.answered_by.is_(None), own), else_=shared)


def _with_own_timings(log: Any) -> Any:
    """The log of a follower, which is a copy of its leader's, with the times of the follower (`JobSummary.timings`)."""

    def since_submit(moment: Any) -> Any:
        seconds = sql_cast(func.extract("epoch", moment - JobRow.created_at), Double)
        ms = sql_cast(func.round(seconds * literal_column("1000::float8")), BigInteger)
        return func.coalesce(sql_cast(ms, Text), "null")

    timings = func.concat(
        '"timings":{"queued_ms":', since_submit(JobRow.started_at),
        ',"ttft_ms":', since_submit(JobRow.first_token_at),
        ',"total_ms":', since_submit(JobRow.finished_at), "}",
    )  # fmt: skip
    last_line = func.split_part(log, "\n", -1)
    return func.left(log, func.length(log) - func.length(last_line)).concat(
        func.regexp_replace(last_line, _TIMINGS, timings)
    )


# Texts, which `to_job` parses: the driver would parse them on the event loop, in one step.
REQUEST = sql_cast(JobRow.request, Text).label("request")
OUTPUT = _answered(sql_cast(JobRow.output, Text), sql_cast(_ANSWER.output, Text)).label("output")
# The archived log of an ended job. That of an answered one has the times of a job that did not wait.
LOG = _answered(
    case((JobRow.follows.is_(None), JobRow.log), else_=_with_own_timings(JobRow.log)),
    func.left(_ANSWER.log, -_LAST_LINE).concat(
        func.regexp_replace(func.right(_ANSWER.log, _LAST_LINE), _LAST_TIMINGS, _NO_TIMINGS)
    ),
)
COLUMNS = (*SUMMARY_COLUMNS, REQUEST, OUTPUT)


def to_summary(row: Any) -> JobSummary:
    """Build the summary of a job from a row of `SUMMARY_COLUMNS`.

    Raises:
        UnreadableRow: this version cannot read the row.
    """
    with readable("job", row.id):
        return JobSummary(**_summary(row))


def to_job(row: Any) -> Job:
    """Build a job from a row of `COLUMNS`. If they are large, run it in a thread: see `read_job`.

    Raises:
        UnreadableRow: this version cannot read the row.
    """
    with readable("job", row.id):
        return Job(**_summary(row), request=to_request(row.request), output=to_output(row.output))


async def read_job(row: Any) -> Job:
    """Build a job from a row of `COLUMNS` without stalling the event loop.

    Raises:
        UnreadableRow: this version cannot read the row.
    """
    return await off_loop(len(row.request) + len(row.output or ""), to_job, row)


def to_request(text: str) -> GenerateRequest:
    """Parse a stored request."""
    return GenerateRequest.model_validate(_loads(text))


def to_output(text: str | None) -> tuple[Choice, ...]:
    """Parse a stored output. Its log probabilities, if there are many, stay in the text until they are read."""
    return tuple(Choice.of(choice) for choice in _loads(text) or ()) if text is not None else ()


def _loads(text: str) -> Any:
    if len(text) <= INLINE_BYTES:
        return orjson.loads(text)
    return chunked_json.loads(text, lazy=("logprobs", "prompt_logprobs"))


def _summary(row: Any) -> dict[str, Any]:
    attempts = [_attempt(item) for item in row.attempts]
    if row.worker is not None and row.attempt_started_at is not None:
        attempts.append(Attempt(row.attempt, row.worker.removesuffix(LOST), row.attempt_started_at, model=row.model))
    return {
        "id": row.id,
        "owner": Owner(row.project_id, row.key_id, row.end_user),
        "model": row.model,
        "status": JobStatus(row.status),
        "priority": row.priority,
        "metadata": row.metadata,
        "created_at": row.created_at,
        "start_before": row.start_before,
        "finish_before": row.finish_before,
        "not_before": row.not_before,
        "deferred_since": row.deferred_since,
        "attempt": row.attempt,
        "deaths": row.deaths,
        "suspect": row.suspect,
        "exposures": row.exposures,
        "worker": row.worker,
        "started_at": row.started_at,
        "first_token_at": row.first_token_at,
        "finished_at": row.finished_at,
        "usage": Usage.of(row.usage) if row.usage is not None else None,
        "error": Failure(row.error_code, row.error_message, row.error_param) if row.error_code is not None else None,
        "attempts": tuple(attempts),
        "request_context": RequestContext(row.request_id, row.traceparent),
        "choices": row.choices,
        "requested_model": row.requested_model,
        "kind": row.kind,
        "decisions": _decisions(row),
        "follows": row.follows,
        "continues": row.continues,
    }


def _decisions(row: Any) -> Decisions:
    if row.decisions is None:
        return NO_DECISIONS
    decisions = Decisions.model_validate(row.decisions)
    if row.follows is None or decisions.cache is None:
        return decisions
    # The row of a follower has the job that led when it was inserted.
    return decisions.model_copy(update={"cache": decisions.cache.model_copy(update={"source": row.follows})})


def _attempt(item: dict[str, Any]) -> Attempt:
    return Attempt(
        number=item["number"],
        worker=item["worker"],
        started_at=datetime.fromisoformat(item["started_at"]),
        ended_at=datetime.fromisoformat(item["ended_at"]),
        tokens=item["tokens"],
        outcome=item["outcome"],
        fingerprint=item.get("fingerprint"),
        model=item.get("model"),
        error=item.get("error"),
    )


def ended_attempt(tokens: int, outcome: AttemptOutcome, error: str | None = None) -> Any:
    """The value of `attempts` with the running attempt appended."""
    optional = ("error", error) if error is not None else ()
    entry = func.jsonb_build_object(
        "number",
        JobRow.attempt,
        "worker",
        func.regexp_replace(JobRow.worker, f"{LOST}$", ""),
        "started_at",
        JobRow.attempt_started_at,
        "ended_at",
        func.clock_timestamp(),
        "tokens",
        tokens,
        "outcome",
        outcome.value,
        "model",
        JobRow.model,
        *optional,
    )
    return JobRow.attempts.op("||")(func.jsonb_build_array(entry, type_=JSONB))


def requeued(tokens: int, outcome: AttemptOutcome) -> dict[Any, Any]:
    """The values that put a running job back into the queue."""
    return {
        JobRow.status: JobStatus.QUEUED.value,
        JobRow.worker: None,
        JobRow.attempts: ended_attempt(tokens, outcome),
    }


def after_death(charged: Any, suspect: Any) -> dict[Any, Any]:
    """The values that record the death of a job's worker or engine; the arguments are SQL or those of a `Verdict`."""
    charge = sql_cast(charged, Integer)
    return {
        JobRow.deaths: JobRow.deaths + charge,
        JobRow.exposures: JobRow.exposures + 1 - charge,
        JobRow.suspect: suspect,
    }


_RESULTS = Records(
    "results",
    id=Text,
    attempt=SmallInteger,
    status=Text,
    finished_at=Timestamp,
    first_token_at=Timestamp,
    output=Encoded(JSON),
    usage=JSONB,
    error_code=Text,
    error_message=Text,
    error_param=Text,
    attempts=JSONB,
    log=Encoded(Text),
    upstream=JSONB,
    cacheable=Boolean,
    answer_bytes=Integer,
)


# Whether a job may have followers.
_LEADS = and_(JobRow.cache_key.is_not(None), JobRow.follows.is_(None))


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


def insert_answered(new: Records, values: Mapping[Any, Any]) -> tuple[CTE, Select[Any]]:
    """The only SQL that creates jobs which have ended: inserts a `completed` job per record that has a cached answer.

    Records and `values` are as in `insert_queued`, and records also as in `cached_answers`. Output and log stay in the
    row of the job that the entry names, which is locked: a later deletion of that job finds the inserted one. If it was
    deleted before, there is no answer. Returns the inserted rows, for further parts of the statement, and the
    statement, which returns their columns. Whatever joins `end_statement` joins this one too.
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
            JobRow.answered_by,
            JobRow.cache_key,
            null().cast(JSONB).label("upstream"),
            literal_column("false", Boolean).label("cacheable"),
            literal_column("0", Integer).label("answer_bytes"),
        )
        .cte("ended")
    )
    output = select(sql_cast(_ANSWER.output, Text)).where(_ANSWER.id == ended.c.answered_by).scalar_subquery()
    return ended, _with_effects(select(*ended.c, output.label("output")), ended)


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


def end_statement(
    *guards: ColumnElement[bool], keyed: bool = True, claimant: Any = None, values: Mapping[Any, Any] | None = None
) -> Any:
    """The only SQL that ends jobs, and the exit seam: writes results (`result_record`), and `values`, to jobs.

    Returns the ids of these jobs (a job that may have followers is its own `leader`), and the followers that continue
    for jobs that were cancelled or have expired (`claimant`: see `promote_followers`). All other followers are settled
    afterwards (`settle_statement`): there may be any number of them.
    Without `keyed`, none of the jobs is expected to have a key of the response cache: the statement takes less time.

    Whatever must be written exactly once when a job ends (a ledger entry, a webhook outbox row) joins this statement
    as a CTE that inserts from the rows which the update returns: in the same transaction, without an extra round trip.
    That covers every end: by the job's worker, while the job waits, or after its worker was lost. They are in
    `_with_effects`, because a job that is answered by the response cache ends in `insert_answered`.

    Optimistic lock: a job ends only if the guards hold and it is still at the attempt that its result names, so that
    no attempt was added to its history since it was read.
    """
    result = _RESULTS
    ended = (
        update(JobRow)
        .where(JobRow.id == result.id, JobRow.attempt == result.attempt, *guards)
        .values(
            {
                JobRow.status: result.status,
                JobRow.worker: None,
                JobRow.unreadable_at: None,
                JobRow.not_before: None,
                JobRow.deferred_since: None,
                JobRow.finished_at: result.finished_at,
                JobRow.first_token_at: func.coalesce(JobRow.first_token_at, result.first_token_at),
                JobRow.output: result.output,
                JobRow.usage: result.usage,
                JobRow.error_code: result.error_code,
                JobRow.error_message: result.error_message,
                JobRow.error_param: result.error_param,
                JobRow.attempts: result.attempts,
                JobRow.log: result.log,
                **(values or {}),
            }
        )
        .returning(
            JobRow.project_id,
            JobRow.model,
            func.coalesce(JobRow.cache_key, JobRow.entry_key).label("cache_key"),
            result.upstream.label("upstream"),
            result.cacheable.label("cacheable"),
            result.answer_bytes.label("answer_bytes"),
            _LEADS.label("may_lead"),
            JobRow.decisions,
            *(one for one in LEADER_COLUMNS if keyed and one.key != "cache_key"),
            *([] if keyed else [JobRow.id]),
        )
        .cte("ended")
    )
    own = {"id": ended.c.id, "leader": case((ended.c.may_lead, ended.c.id))}
    jobs = select(*(own.get(name, null()).label(name) for name in CHANGE))
    if not keyed:
        return _with_effects(jobs, ended, keyed=False)
    leaders = (
        select(*(ended.c[one.key] for one in LEADER_COLUMNS))
        .where(ended.c.may_lead, ended.c.status.in_(SUCCEEDED_BY_FOLLOWER))
        .cte("leaders")
    )
    rows = union_all(jobs, changed_rows(promote_followers(leaders, claimant)))
    return _with_effects(select(rows.subquery()), ended)


def settle_statement(groups: Select[Any], **portion: Any) -> Any:
    """Run `settle_followers` for those of the groups (`id`) whose leader has ended, leads no more, does not exist, or
    waits."""
    found = groups.subquery("groups")
    named = select(found.c.id.label("named"), leader_of(found.c.id).label("id")).cte("named")
    leader = aliased(JobRow)
    columns = [getattr(leader, one.key) for one in (*LEADER_COLUMNS, *ANSWER_COLUMNS) if one.key not in ("id", "leads")]
    has_left = or_(leader.finished_at.is_not(None), leader.cache_key.is_(None))  # also if it does not exist
    leaders = (
        select(named.c.id, named.c.named.label("leads"), *columns)
        .join_from(named, leader, leader.id == named.c.id, isouter=True)
        .where(or_(has_left, is_waiting(leader)))
        .cte("leaders")
    )
    ended, released = settle_followers(leaders, **portion)
    return _with_effects(select(union_all(changed_rows(ended), changed_rows(released)).subquery()), ended)


def _groups_of_leaders() -> Select[Any]:
    """The groups that the jobs `ids` lead or have led. An id of which there is no job is that of a group."""
    wanted = func.unnest(bindparam("ids", type_=ARRAY(Text))).table_valued(column("id", Text)).render_derived("wanted")
    leader = aliased(JobRow)
    group = func.coalesce(leader.leads, wanted.c.id).label("id")
    return select(group).join_from(wanted, leader, leader.id == wanted.c.id, isouter=True).distinct()


def _with_effects(rows: Select[Any], ended: CTE, *, keyed: bool = True) -> Select[Any]:
    """Let a statement that ends jobs also write what must be written exactly once per end.

    These are the upstream's request, if it is still to be cancelled, and, if `keyed`, the entry of the response cache.
    `ended` are the jobs that end: `id`, `project_id`, `model`, `cache_key`, `decisions`, `upstream`, `cacheable`,
    `answer_bytes`.
    """
    left = select(ended.c.id, ended.c.model, ended.c.upstream).where(ended.c.upstream.is_not(None))
    cancellations = insert(UpstreamCancellationRow).from_select(["job_id", "model", "state"], left)
    rows = rows.add_cte(cancellations.cte("cancellations"))
    if not keyed:
        return rows
    ttl_s: Any = sql_cast(ended.c.decisions["cache"]["ttl_s"].astext, Integer)
    # Each key once and in the same order as in other statements, which could otherwise wait for each other.
    answers = (
        select(
            ended.c.cache_key, ended.c.project_id, ended.c.model, ended.c.id, ended.c.answer_bytes,
            func.now() + seconds(ttl_s), func.clock_timestamp(),
        )
        .ext(distinct_on(ended.c.cache_key))
        .where(ended.c.cacheable, ended.c.cache_key.is_not(None), ttl_s.is_not(None))
        .order_by(ended.c.cache_key, ended.c.id.desc())
    )  # fmt: skip
    entries = upsert(CachedAnswerRow).from_select(
        ["key", "project_id", "model", "job_id", "bytes", "expires_at", "created_at"], answers
    )
    entries = entries.on_conflict_do_update(
        index_elements=[CachedAnswerRow.key],
        set_={
            "job_id": entries.excluded.job_id,
            "bytes": entries.excluded.bytes,
            "created_at": entries.excluded.created_at,
            "expires_at": entries.excluded.expires_at,
            "hits": 0,
            "used_at": func.now(),
        },
        # The newest job has the newest answer, even if an older one ends after it.
        where=or_(CachedAnswerRow.job_id < entries.excluded.job_id, CachedAnswerRow.expires_at <= func.now()),
    )
    return rows.add_cte(entries.cte("entries"))


def result_record(job_id: str, attempt: int, result: JobResult) -> dict[str, Any]:
    """A record for `end_statement`."""
    error = result.error
    return {
        "id": job_id,
        "attempt": attempt,
        "status": result.status.value,
        "finished_at": result.finished_at,
        "first_token_at": result.first_token_at,
        "output": result.output,
        "usage": result.usage.stored(),
        "error_code": error.code if error else None,
        # A message may quote anything, and `text` refuses U+0000.
        "error_message": error.message.replace("\0", "\ufffd") if error else None,
        "error_param": error.param.replace("\0", "\ufffd") if error and error.param is not None else None,
        "attempts": [asdict(attempt) for attempt in result.attempts],
        "log": result.log,
        "upstream": stored_state(job_id, result.upstream) if result.upstream is not None else None,
        "cacheable": result.cacheable,
        "answer_bytes": len(result.output) + len(result.log),
        "keyed": result.cacheable or result.leads,
    }


def purge_statement(*guards: ColumnElement[bool]) -> Any:
    """Delete the input and output of ended jobs for which the guards hold.

    Their responses and their entries in the response cache are deleted too. Output and log of a job that the response
    cache may have given to others stay in its row, where nobody can read them but those others, until
    `release_statement` removes them.

    The rows remain, for accounting. Returns the ids, and the conversations of which there are summaries
    (`shared.postgres.summary_deletion`).
    """
    purged = (
        update(JobRow)
        .where(*guards, JobRow.deleted_at.is_(None), JobRow.status.in_(TERMINAL))
        .values(
            request={},
            job_metadata={},
            output=case((MAY_BE_SHARED, JobRow.output)),
            log=case((MAY_BE_SHARED, JobRow.log)),
            error_message=None,
            error_param=None,
            deleted_at=func.now(),
        )
        .returning(JobRow.id, JobRow.decisions["context"]["conversation"].astext.label("conversation"))
        .cte("purged")
    )
    response = delete(ResponseRow).where(ResponseRow.job_id.in_(select(purged.c.id)))
    return select(purged.c.id, purged.c.conversation).add_cte(
        response.cte("response"), delete_entries(purged).cte("entry")
    )


# Condition: the response cache may have given the job's answer to others.
MAY_BE_SHARED = and_(
    JobRow.status == literal_column(f"'{JobStatus.COMPLETED.value}'"),
    or_(JobRow.cache_key.is_not(None), JobRow.entry_key.is_not(None)),
)
_HIT = aliased(JobRow, name="hit")
# Condition: no other job has the job's answer. Decisive only if an earlier statement has deleted the job: before, a
# statement that gives its answer to another one may be in progress.
# One job by the index: for an EXISTS, PostgreSQL could read all jobs.
IS_UNSHARED = (
    select(_HIT.id)
    .where(_HIT.answered_by == JobRow.id, _HIT.deleted_at.is_(None))
    .limit(literal_column("1"))
    .correlate(JobRow)
    .scalar_subquery()
    .is_(None)
)


def release_statement(*guards: ColumnElement[bool]) -> Any:
    """Delete output and log of deleted jobs for which the guards hold, if no other job has their answer any more."""
    return (
        update(JobRow)
        .where(*guards, JobRow.deleted_at.is_not(None), JobRow.log.is_not(None), IS_UNSHARED)
        .values({JobRow.output: None, JobRow.log: None})
    )


def delete_entries(jobs: CTE) -> Any:
    """Delete the entries of these jobs (`id`) in the response cache, in the order of other statements."""
    locked = (
        select(CachedAnswerRow.key)
        .where(CachedAnswerRow.job_id.in_(select(jobs.c.id)))
        .order_by(CachedAnswerRow.key)
        .with_for_update()
        .cte("locked_entries")
    )
    return delete(CachedAnswerRow).where(CachedAnswerRow.key.in_(select(locked.c.key)))


def owned(job_id: str, attempt: int, worker: str) -> ColumnElement[bool]:
    """Condition: the job is running, and this attempt of this worker owns it."""
    return and_(
        JobRow.id == job_id,
        JobRow.attempt == attempt,
        JobRow.worker == worker,
        IS_RUNNING,
    )


def live_workers() -> Select[str]:
    """The ids of the workers whose lease has not expired."""
    return select(WorkerRow.id).where(WorkerRow.lease_expires_at > func.clock_timestamp())


def overdue(started_at: Any = JobRow.started_at) -> ColumnElement[bool]:
    """Condition: a deadline of the job has passed. Once a job was started, only its finish deadline counts."""
    now = func.clock_timestamp()
    return or_(
        func.coalesce(and_(JobRow.start_before < now, started_at.is_(None)), False),
        func.coalesce(JobRow.finish_before < now, False),
    )


def due(for_s: float = 0) -> ColumnElement[bool]:
    """Condition: the job is not deferred, or has been due again for this many seconds."""
    return or_(JobRow.not_before.is_(None), JobRow.not_before <= func.clock_timestamp() - seconds(for_s))


class EndStatements:
    """The `end_statement` with some guards, for jobs with and without keys of the response cache."""

    def __init__(
        self, *guards: ColumnElement[bool], claimant: Any = None, values: Mapping[Any, Any] | None = None
    ) -> None:
        self.keyed = Prepared(end_statement(*guards, claimant=claimant, values=values))
        self.plain = Prepared(end_statement(*guards, values=values, keyed=False))

    def of(self, results: Sequence[Mapping[str, Any]]) -> Prepared:
        """The one for these results. A leader that ends without its followers is found by its row (`_end`)."""
        return self.keyed if any(item["keyed"] for item in results) else self.plain


_SETTLE = Prepared(settle_statement(_groups_of_leaders(), portion_bytes=bindparam("portion_bytes", type_=Integer)))
_FOLLOWER = bindparam("follower", type_=Text)
_SETTLE_FOLLOWER = Prepared(
    settle_statement(select(JobRow.follows.label("id")).where(JobRow.id == _FOLLOWER, FOLLOWS), follower=_FOLLOWER)
)


class JobRowStore(Store):
    """The base class of stores of jobs."""

    async def _summaries(self, statement: Select[Any]) -> list[JobSummary]:
        """Build summaries from rows, without those that this version cannot read."""
        return await self._readable(statement, to_summary)

    async def _end(
        self, statements: EndStatements, results: Sequence[dict[str, Any]], **values: object
    ) -> list[Ended | None]:
        """Run an `end_statement`; return for each result what its end has changed, or None if it was not written.

        The caller has to pass these to `_settled`: not here, because an error would mean that nothing was written.
        """
        rows = await statements.of(results).run(self._engine, {**_RESULTS.parameters(results), **values})
        leads = {row.id: row.leader is not None for row in rows if row.status is None}
        changes = [read_change(row) for row in rows if row.status is not None]
        return [
            Ended(tuple(change for change in changes if change.leader == item["id"]), leads[item["id"]])
            if item["id"] in leads
            else None
            for item in results
        ]

    async def _settled(self, job_id: str, ended: Ended | None) -> Ended | None:
        """Settle the first portion of the followers of a job that has ended, and add their changes.

        A failure of that is no error: the job has ended, and readers and sweeps settle the others.
        """
        if ended is None or not ended.leads:
            return ended
        return replace(ended, followers=(*ended.followers, *await self._settle_after_commit(job_id)))

    async def _settle_after_commit(self, leader: str) -> list[FollowerChange]:
        """As `settle`; without changes if that fails: the end of the leader has been written."""
        try:
            return await self._settle_portion(leader)
        except Exception as error:
            trace = None if is_database_outage(error) else error
            message = "job=%s cannot settle the jobs that follow it, a sweep will: %s"
            logger.warning(message, leader, error, exc_info=trace)
            return []

    async def _settle_portion(self, leader: str) -> list[FollowerChange]:
        return await self.settle([leader])

    async def settle(self, leaders: Sequence[str]) -> list[FollowerChange]:
        """End or release a portion of the followers that are not to wait any more, of those that these jobs have led.

        Returns the changes. Instead of a job, its group may be given.
        """
        parameters = {"ids": list(leaders), "portion_bytes": PORTION_BYTES // max(1, len(leaders))}
        return [read_change(row) for row in await _SETTLE.run(self._engine, parameters)]

    async def settle_follower(self, follower: str) -> list[FollowerChange]:
        """End or release a follower, if it is not to wait any more. Returns the change, if there is one."""
        rows = await _SETTLE_FOLLOWER.run(self._engine, {"follower": follower})
        return [replace(read_change(row), first=False) for row in rows]

    async def archived_log(self, job_id: str) -> str | None:
        """Return the events of a job that has ended, as lines; None if it has not ended."""
        statement = select(LOG.label("log")).where(JobRow.id == job_id, JobRow.status.in_(TERMINAL))
        return await self._one(statement, lambda row: row.log or "")  # a deleted job has no log
