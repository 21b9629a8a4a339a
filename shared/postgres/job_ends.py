"""The statements that end jobs.

`end_statement` is a seam, where everything that must happen once per ended job belongs: it is the only SQL that ends a
job. What it writes beside the job's row is in `with_effects`, which also joins the two statements that end jobs with
the answer of another one: `settle_statement`, and `shared.postgres.job_inserts.insert_answered`. A test checks that no
other SQL ends jobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import (
    CTE,
    JSON,
    Boolean,
    ColumnElement,
    Integer,
    Select,
    SmallInteger,
    Text,
    and_,
    case,
    func,
    insert,
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

from shared.domain.result import JobResult
from shared.postgres.budgets import lock_windows, release_reservations
from shared.postgres.followers import (
    ANSWER_COLUMNS,
    CHANGE,
    FOLLOWS,
    LEADER_COLUMNS,
    SUCCEEDED_BY_FOLLOWER,
    changed_rows,
    is_waiting,
    leader_of,
    promote_followers,
    settle_followers,
)
from shared.postgres.ledger import OWNER_COLUMNS, charges, insert_answers, insert_entries
from shared.postgres.prepared import Prepared
from shared.postgres.request_log import LOGGED_COLUMNS, insert_log_rows
from shared.postgres.store import Encoded, Records, seconds
from shared.postgres.tables import CachedAnswerRow, JobRow, Timestamp, UpstreamCancellationRow
from shared.postgres.upstream_cancellations import stored_state

RESULTS = Records(
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
    entries=JSONB,
    refused=Boolean,
    refusal_source=Text,
)


# What `end_statement` returns beside `LEADER_COLUMNS`.
_RETURNED = {"cache_key", *(one.key for one in LOGGED_COLUMNS)}
# Whether a job may have followers.
_LEADS = and_(JobRow.cache_key.is_not(None), JobRow.follows.is_(None))


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
    `with_effects`, because a job that is answered by the response cache ends in `insert_answered`.

    Locks the windows of budgets before the rows of jobs (`shared.postgres.budgets`).

    Optimistic lock: a job ends only if the guards hold and it is still at the attempt that its result names, so that
    no attempt was added to its history since it was read.
    """
    result = RESULTS
    ended = (
        update(JobRow)
        .where(lock_windows(result.values_of("id")), JobRow.id == result.id, JobRow.attempt == result.attempt, *guards)
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
            *OWNER_COLUMNS,
            JobRow.model,
            func.coalesce(JobRow.cache_key, JobRow.entry_key).label("cache_key"),
            result.upstream.label("upstream"),
            result.cacheable.label("cacheable"),
            result.answer_bytes.label("answer_bytes"),
            result.entries.label("entries"),
            result.refused.label("refused"),
            result.refusal_source.label("refusal_source"),
            _LEADS.label("may_lead"),
            JobRow.decisions,
            *LOGGED_COLUMNS,
            *(one for one in LEADER_COLUMNS if keyed and one.key not in _RETURNED),
            *([] if keyed else [JobRow.id]),
        )
        .cte("ended")
    )
    own = {"id": ended.c.id, "leader": case((ended.c.may_lead, ended.c.id))}
    jobs = select(*(own.get(name, null()).label(name) for name in CHANGE))
    if not keyed:
        return with_effects(jobs, ended, keyed=False)
    leaders = (
        select(*(ended.c[one.key] for one in LEADER_COLUMNS))
        .where(ended.c.may_lead, ended.c.status.in_(SUCCEEDED_BY_FOLLOWER))
        .cte("leaders")
    )
    rows = union_all(jobs, changed_rows(promote_followers(leaders, claimant)))
    return with_effects(select(rows.subquery()), ended)


def settle_statement(groups: Select[Any], **portion: Any) -> Any:
    """Run `settle_followers` for those of the groups (`id`) whose leader has ended, leads no more, does not exist, or
    waits."""
    found = groups.subquery("groups")
    named = select(found.c.id.label("named"), leader_of(found.c.id).label("id")).cte("named")
    followers = select(JobRow.id).where(JobRow.follows.in_(select(found.c.id)), FOLLOWS)
    leader = aliased(JobRow)
    columns = [getattr(leader, one.key) for one in (*LEADER_COLUMNS, *ANSWER_COLUMNS) if one.key not in ("id", "leads")]
    has_left = or_(leader.finished_at.is_not(None), leader.cache_key.is_(None))  # also if it does not exist
    leaders = (
        select(named.c.id, named.c.named.label("leads"), *columns)
        .join_from(named, leader, leader.id == named.c.id, isouter=True)
        .where(or_(has_left, is_waiting(leader)), lock_windows(followers))
        .cte("leaders")
    )
    ended, released = settle_followers(leaders, **portion)
    rows = select(union_all(changed_rows(ended), changed_rows(released)).subquery())
    return with_effects(rows, ended, answered_by=ended.c.leader)


def with_effects(
    rows: Select[Any], ended: CTE, *, keyed: bool = True, answered_by: ColumnElement[str] | None = None
) -> Select[Any]:
    """Let a statement that ends jobs also write what must be written exactly once per end.

    These are the entries of the ledger, with what they are charged in the windows of budgets, the rows of the request
    log, the upstream's request, if it is still to be cancelled, and, if `keyed`, the entry of the response cache.
    `ended` are the jobs that end: `id`, `OWNER_COLUMNS`, `LOGGED_COLUMNS`, `model`, `cache_key`, `decisions`,
    `upstream`, `cacheable`, `answer_bytes`, and `entries`, those of the ledger, unless they end with the answer of
    another job, which the column `answered_by` names.
    """
    ledger = insert_entries(ended) if answered_by is None else insert_answers(ended, answered_by)
    rows = rows.add_cte(insert_log_rows(ended, answered=answered_by is not None))
    rows = rows.add_cte(ledger, release_reservations(ended, charges(ended, ledger)))
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
        "entries": [entry.stored() for entry in result.entries],
        "refused": result.refusal.refused if result.refusal is not None else None,
        "refusal_source": result.refusal.source.value if result.refusal is not None else None,
        "keyed": result.cacheable or result.leads,
    }


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
