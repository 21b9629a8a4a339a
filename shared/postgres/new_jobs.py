"""The statements that insert a client's jobs, with their records.

A job is inserted alone, as the leader of its cache key, as a follower of an open job, or with an answer of the response
cache. `shared.postgres.job_store` runs these statements.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    CTE,
    JSON,
    BigInteger,
    Boolean,
    Double,
    Integer,
    LargeBinary,
    Select,
    SmallInteger,
    Text,
    and_,
    case,
    func,
    insert,
    literal_column,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import aliased

from shared.domain.decisions import CacheOutcome
from shared.domain.job import Job, JobStatus
from shared.domain.log_level import DEFAULT_LOG_LEVEL, level_to_store
from shared.domain.new_job import NewJob
from shared.domain.response import ResponseFacts
from shared.postgres.budgets import RESERVATIONS, Refused, Reserving, refusals, reservation_records
from shared.postgres.followers import COALESCED, LEADER, group_of, with_cache_decision
from shared.postgres.job_inserts import cached_answers, insert_answered, insert_queued
from shared.postgres.job_rows import to_output, to_summary
from shared.postgres.prepared import Prepared
from shared.postgres.store import Records, json_text, seconds
from shared.postgres.tables import CachedAnswerRow, JobRow, ResponseRow
from shared.runtime.offload import off_loop


@dataclass(frozen=True, slots=True)
class Inserted:
    """The values of a new job that the database sets."""

    created_at: datetime
    start_before: datetime | None
    finish_before: datetime | None
    follows: str | None


_NEW = Records(
    "new",
    id=Text,
    project_id=BigInteger,
    key_id=BigInteger,
    end_user=Text,
    model=Text,
    priority=SmallInteger,
    request=JSON,
    request_bytes=Integer,
    prompt_bytes=Integer,
    choices=SmallInteger,
    metadata=JSON,
    start_within_s=Double,
    finish_within_s=Double,
    request_id=Text,
    traceparent=Text,
    requested_model=Text,
    kind=Text,
    log_level=Text,
    decisions=JSONB,
    cache_key=LargeBinary,
    max_age_s=Integer,
    demands_new=Boolean,
    streams=Boolean,
    since_lookup_s=Double,
    delay_s=Double,
    webhook=JSONB,
)
_VALUES = {
    JobRow.project_id: _NEW.project_id,
    JobRow.key_id: _NEW.key_id,
    JobRow.end_user: _NEW.end_user,
    JobRow.priority: _NEW.priority,
    JobRow.request_bytes: _NEW.request_bytes,
    JobRow.prompt_bytes: _NEW.prompt_bytes,
    JobRow.start_before: func.now() + seconds(_NEW.start_within_s),
    JobRow.finish_before: func.now() + seconds(_NEW.finish_within_s),
    JobRow.request_id: _NEW.request_id,
    JobRow.traceparent: _NEW.traceparent,
    JobRow.requested_model: _NEW.requested_model,
    JobRow.kind: _NEW.kind,
    JobRow.log_level: _NEW.log_level,
    JobRow.decisions: _NEW.decisions,
    JobRow.webhook: _NEW.webhook,
}
_RESPONSES = Records(
    "response", job_id=Text, request_params=JSON, input=JSON, previous_id=Text, background=Boolean, stored=Boolean
)
_RESPONSE_COLUMNS = {
    ResponseRow.job_id: _RESPONSES.job_id,
    ResponseRow.asked: _RESPONSES.request_params,
    ResponseRow.input: _RESPONSES.input,
    ResponseRow.previous_id: _RESPONSES.previous_id,
    ResponseRow.background: _RESPONSES.background,
    ResponseRow.stored: _RESPONSES.stored,
}


def _with_responses(statement: Select[Any], inserted: CTE) -> Select[Any]:
    """Also insert the responses of the inserted jobs: one statement, one commit."""
    responses = select(*_RESPONSE_COLUMNS.values()).where(_RESPONSES.job_id.in_(select(inserted.c.id)))
    rows = insert(ResponseRow).from_select(list(_RESPONSE_COLUMNS), responses)
    return statement.add_cte(rows.cte("responses_inserted"))


def _all_records(records: Select[Any]) -> Select[Any]:
    return records


class Insertion:
    """The statements that insert queued jobs in one way: with or without responses, and reservations of budgets."""

    def __init__(
        self,
        values: Mapping[Any, Any],
        narrow: Callable[[Select[Any]], Select[Any]] = _all_records,
        *,
        leaves_out_leaders: bool = False,
    ) -> None:
        """`values` and `narrow`: as for `insert_queued`. `leaves_out_leaders`: a job is left out if it would lead, but
        another one leads."""
        self._values = values
        self._narrow = narrow
        self._leaves_out_leaders = leaves_out_leaders
        # By whether the statement inserts responses, and whether it reserves. Most installations have no budgets.
        self._statements = {(False, False): self._build(), (True, False): self._build(responses=True)}

    def of(self, new: Sequence[dict[str, Any]]) -> tuple[Prepared, dict[str, Any]]:
        """The statement that inserts these records, and its parameters."""
        for item in new:
            if item["looked_up_at"] is not None:
                item["since_lookup_s"] = time.monotonic() - item["looked_up_at"]
        responses = [item["response"] for item in new if item["response"] is not None]
        reservations = [
            record
            for place, item in enumerate(new)
            for record in reservation_records(item["id"], item["reservations"], place)
        ]
        parameters = _NEW.parameters(new)
        if responses:
            parameters |= _RESPONSES.parameters(responses)
        if reservations:
            parameters |= RESERVATIONS.parameters(reservations)
        kind = bool(responses), bool(reservations)
        if kind not in self._statements:
            self._statements[kind] = self._build(responses=bool(responses), reserving=Reserving())
        return self._statements[kind], parameters

    def _build(self, *, responses: bool = False, reserving: Reserving | None = None) -> Prepared:
        def narrow(records: Select[Any]) -> Select[Any]:
            records = self._narrow(records)
            return records if reserving is None else records.where(reserving.admitted(_NEW.id))

        insertion = insert_queued(_NEW, self._values, narrow)
        if self._leaves_out_leaders:
            insertion = insertion.on_conflict_do_nothing()
        returning = insertion.returning(JobRow.id, JobRow.created_at, JobRow.start_before, JobRow.finish_before, LEADER)
        if not responses and reserving is None:
            return Prepared(returning)
        inserted = returning.cte("inserted")
        rows = select(*inserted.c) if reserving is None else reserving.with_reservations(inserted)
        return Prepared(_with_responses(rows, inserted) if responses else rows)


# An entry has the time at which the statement that wrote it began, and can be read up to this much later.
_END_S = 5
_LEADER = aliased(JobRow, name="leader")


def _may_lead(records: Select[Any]) -> Select[Any]:
    """Those records whose answer was not stored after it was looked up, in the same order as in other statements."""
    # One entry by its key: PostgreSQL could read all entries for an EXISTS.
    stored = (
        select(CachedAnswerRow.key)
        .where(
            CachedAnswerRow.key == _NEW.cache_key,
            CachedAnswerRow.created_at > func.now() - seconds(_NEW.since_lookup_s + _END_S),
            or_(_NEW.max_age_s.is_(None), CachedAnswerRow.created_at > func.now() - seconds(_NEW.max_age_s)),
        )
        .limit(literal_column("1"))
        .scalar_subquery()
    )
    return records.where(or_(_NEW.demands_new, stored.is_(None))).order_by(_NEW.cache_key)


def _with_leader(records: Select[Any]) -> Select[Any]:
    """Those records whose key an open job has."""
    return records.where(
        _LEADER.cache_key == _NEW.cache_key,
        _LEADER.project_id == _NEW.project_id,
        _LEADER.model == _NEW.model,
        _LEADER.follows.is_(None),
        _LEADER.finished_at.is_(None),
    )


# A new job does not follow one that waits with a lower priority, which would delay it, nor if it demands a new answer.
_FOLLOWS = and_(
    ~_NEW.demands_new,
    or_(_LEADER.status != literal_column(f"'{JobStatus.QUEUED.value}'"), _LEADER.priority <= _NEW.priority),
)
# A job that neither leads nor follows. Without a key, it stores no answer either. Only such a job may be delayed.
INSERT = Insertion({**_VALUES, JobRow.not_before: func.now() + seconds(_NEW.delay_s), JobRow.entry_key: _NEW.cache_key})
# Of several open jobs with the same key, one leads. The others are not inserted.
LEAD = Insertion({**_VALUES, JobRow.cache_key: _NEW.cache_key}, _may_lead, leaves_out_leaders=True)
# The others follow it, or run beside it.
JOIN = Insertion(
    {
        **_VALUES,
        JobRow.cache_key: case((_FOLLOWS, _NEW.cache_key)),
        JobRow.entry_key: case((~_FOLLOWS, _NEW.cache_key)),
        JobRow.follows: case((_FOLLOWS, group_of(_LEADER))),
        JobRow.dispatched_at: case((~_FOLLOWS, func.now())),
        JobRow.decisions: case(
            (_FOLLOWS, with_cache_decision(_NEW.decisions, outcome=COALESCED, source=_LEADER.id)),
            else_=_NEW.decisions,
        ),
    },
    _with_leader,
)
_ANSWER = Prepared(insert_answered(_NEW, _VALUES, streams=True)[1])
_ANSWERED, _ANSWER_STATEMENT = insert_answered(_NEW, _VALUES, streams=True, responses=_RESPONSES.values_of("job_id"))
_ANSWER_WITH_RESPONSES = Prepared(_with_responses(_ANSWER_STATEMENT, _ANSWERED))
# The size of the answer that the response cache has for each record.
LOOKUPS = Records("lookup", id=Text, cache_key=LargeBinary, project_id=BigInteger, model=Text, max_age_s=Integer)
LOOKUP = Prepared(cached_answers(LOOKUPS))


def new_record(job_id: str, new: NewJob) -> dict[str, Any]:
    """The record of a new job, for `Insertion` and `answer_statement`."""
    request = new.stored_request()
    return {
        "id": job_id,
        "project_id": new.owner.project_id,
        "key_id": new.owner.key_id,
        "end_user": new.owner.end_user,
        "model": new.model,
        "priority": new.priority,
        "request": request,
        "request_bytes": len(request),
        "prompt_bytes": new.request.prompt_bytes,
        "choices": new.request.sampling.n,
        "metadata": new.metadata,
        "start_within_s": new.start_within_s,
        "finish_within_s": new.finish_within_s,
        "request_id": new.request_context.request_id,
        "traceparent": new.request_context.traceparent,
        "requested_model": new.requested_model,
        "kind": new.kind,
        "log_level": level_to_store(new.log_level),
        "decisions": new.decisions.stored(),
        "cache_key": new.cache_key,
        "max_age_s": new.options.cache_control.max_age_s,
        "demands_new": new.options.cache_control.no_cache,
        "streams": new.options.streams,
        # When the response cache was looked up, by the monotonic clock, and how long ago that is at the insertion.
        "looked_up_at": None,
        "since_lookup_s": 0.0,
        "delay_s": new.delay_s,
        "webhook": None if new.webhook is None else new.webhook.stored(),
        "response": None if new.response is None else _response_record(job_id, new.response),
        "reservations": new.reservations,
    }


def _response_record(job_id: str, response: ResponseFacts) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "request_params": json_text(response.request_params),
        "input": json_text(response.input),
        "previous_id": response.previous_id,
        "background": response.background,
        "stored": response.stored,
    }


def weight(record: dict[str, Any]) -> int:
    """About the bytes that the rows of a record have."""
    response = record["response"]
    return len(record["request"]) * (1 if response is None else 2)  # both rows of a response have its input


def created_job(job_id: str, new: NewJob, inserted: Inserted) -> Job:
    """The queued job that an `Insertion` has inserted."""
    decisions = new.decisions
    if inserted.follows is not None and (cache := decisions.cache) is not None:
        coalesced = cache.model_copy(update={"outcome": CacheOutcome.COALESCED.value, "source": inserted.follows})
        decisions = decisions.model_copy(update={"cache": coalesced})
    return Job(
        id=job_id,
        owner=new.owner,
        model=new.model,
        status=JobStatus.QUEUED,
        priority=new.priority,
        request=new.request,
        choices=new.request.sampling.n,
        metadata=new.metadata,
        created_at=inserted.created_at,
        start_before=inserted.start_before,
        finish_before=inserted.finish_before,
        not_before=inserted.created_at + timedelta(seconds=new.delay_s) if new.delay_s is not None else None,
        request_context=new.request_context,
        requested_model=new.requested_model,
        kind=new.kind,
        log_level=new.log_level or DEFAULT_LOG_LEVEL,
        decisions=decisions,
        follows=inserted.follows,
    )


async def answered_job(new: NewJob, row: Any) -> Job:
    """The job of a row that `insert_answered` has returned."""
    summary = to_summary(row)
    values = {field.name: getattr(summary, field.name) for field in fields(summary)} | {"charge": Decimal(0)}
    output = await off_loop(len(row.output or ""), to_output, row.output)
    return Job(**values, request=new.request, output=output, log_start=row.log_start)


def answer_statement(new: Sequence[dict[str, Any]]) -> tuple[Prepared, dict[str, Any]]:
    """The statement that answers these records from the cache, and its parameters."""
    responses = [item["response"] for item in new if item["response"] is not None]
    if not responses:
        return _ANSWER, _NEW.parameters(new)
    return _ANSWER_WITH_RESPONSES, _NEW.parameters(new) | _RESPONSES.parameters(responses)


def in_order(rows: Iterable[Any], new: Sequence[dict[str, Any]]) -> list[Inserted | Refused | None]:
    """Return the outcomes in the order of the records; None for those that the insertion's conditions leave out."""
    rows = list(rows)
    outcomes: dict[str, Inserted | Refused] = {}
    if any(item["reservations"] for item in new):
        outcomes |= refusals(rows)
    for row in rows:
        if row.id not in outcomes:
            outcomes[row.id] = Inserted(row.created_at, row.start_before, row.finish_before, row.follows)
    return [outcomes.get(item["id"]) for item in new]
