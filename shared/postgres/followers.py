"""SQL about followers: jobs that wait for the answer of their leader, another open job with the same request.

A follower is queued and has no message. Its leader's end is also its own, in the same statement: it ends with the same
answer; or, if there is none, it is released to the queue. Of the followers of a job that was cancelled or has expired,
the oldest takes the lead, and the others follow it. Of one that has failed, or was moved to another model and so lost
its cache key, each becomes a job of its own.

A follower that is inserted while its leader's end is being committed is not seen by that statement. So the process that
ends a leader, the one that inserts a follower, and every sweep run `settle_statement` of
`shared.postgres.job_statements`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    CTE,
    Boolean,
    ColumnElement,
    Integer,
    Select,
    and_,
    case,
    exists,
    func,
    literal_column,
    null,
    select,
    type_coerce,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import aliased

from shared.domain.decisions import CacheOutcome
from shared.domain.job import SUCCEEDED, JobStatus
from shared.domain.priorities import Hint, to_front
from shared.postgres.tables import JobRow


def _literals(values: Iterable[str]) -> list[ColumnElement[str]]:
    return [literal_column(f"'{value}'::text") for value in values]


_SUCCEEDED = _literals(SUCCEEDED)
_GIVEN_UP = _literals((JobStatus.CANCELLED, JobStatus.EXPIRED))
COALESCED, _MISS = _literals((CacheOutcome.COALESCED, CacheOutcome.MISS))


@dataclass(frozen=True, slots=True)
class FollowerChange:
    """What the end of its leader has meant for a follower: it has ended too, was released to the queue, or is run on.

    `status` is the one that it has now, `seconds` its age.
    """

    job_id: str
    leader: str
    model: str
    priority: int
    status: JobStatus
    seconds: float
    request_id: str | None

    @property
    def hint(self) -> Hint:
        """The message of a released job. Its turn had come with its leader's, whose readers it may have had."""
        return to_front(Hint(self.job_id, self.model, self.priority))


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a job was written, with these changes of its followers."""

    followers: tuple[FollowerChange, ...] = ()


# The columns of leaders that their followers' changes depend on.
LEADER_COLUMNS = (
    JobRow.id,
    JobRow.status,
    JobRow.attempt,
    JobRow.continues,
    JobRow.started_at,
    JobRow.first_token_at,
    JobRow.finished_at,
    JobRow.attempts,
    JobRow.decisions,
    JobRow.output,
    JobRow.usage,
    JobRow.log,
)


# Condition: the job follows another one. It is the one of an index.
FOLLOWS = and_(JobRow.follows.is_not(None), JobRow.finished_at.is_(None))


def follower_changes(leaders: CTE, *, promote: bool, claimant: Any = None) -> tuple[CTE, CTE]:
    """End or release the followers of ended jobs; `leaders` has their `LEADER_COLUMNS`.

    Without `promote`, no follower takes the lead: another job may have it already. With `claimant`, the one that takes
    it is claimed, as its first attempt, by the worker that runs the generation on. The result are the jobs that have
    ended, and those that follow no more or another job; the columns of both are those of a `FollowerChange`. Those that
    have ended also have the columns of `_with_effects`, through which all jobs end.
    """
    followers = (
        select(JobRow.id, leaders.c.id.label("leader"))
        .where(JobRow.follows == leaders.c.id, JobRow.finished_at.is_(None))
        # Locked, and checked again then: none of them ends or is released elsewhere meanwhile.
        .order_by(JobRow.id)
        .with_for_update(of=JobRow)
        .cte("followers")
    )
    answered = and_(leaders.c.status.in_(_SUCCEEDED), leaders.c.log.is_not(None))
    ended = (
        update(JobRow)
        .where(JobRow.id == followers.c.id, leaders.c.id == followers.c.leader, answered)
        .values(
            {
                JobRow.status: leaders.c.status,
                JobRow.finished_at: func.greatest(leaders.c.finished_at, JobRow.created_at),
                JobRow.started_at: func.greatest(leaders.c.started_at, JobRow.created_at),
                JobRow.first_token_at: _since_then(leaders.c.first_token_at),
                JobRow.output: leaders.c.output,
                JobRow.usage: leaders.c.usage,
                JobRow.log: leaders.c.log,
                JobRow.decisions: decided(
                    JobRow.decisions,
                    outcome=COALESCED,
                    source=leaders.c.id,
                    fingerprint=func.coalesce(
                        type_coerce(leaders.c.attempts, JSONB)[-1]["fingerprint"].astext,
                        type_coerce(leaders.c.decisions, JSONB)["cache"]["fingerprint"].astext,
                    ),
                ),
            }
        )
        .returning(
            *_change_columns(leaders.c.id),
            JobRow.project_id,
            JobRow.cache_key,
            JobRow.decisions,
            null().cast(JSONB).label("upstream"),
            literal_column("false", Boolean).label("cacheable"),
            literal_column("0", Integer).label("answer_bytes"),
        )
        .cte("followers_ended")
    )
    # A job without an attempt has no log of its own, only the beginning that it had from an earlier leader. The log of
    # one that has not ended will be that of another model.
    begins_with = case(
        (leaders.c.finished_at.is_(None), literal_column("''")),
        (leaders.c.attempt > 0, leaders.c.id),
        else_=leaders.c.continues,
    )
    released_values: dict[Any, Any] = {
        JobRow.continues: begins_with,
        JobRow.dispatched_at: func.now(),
        JobRow.started_at: _since_then(leaders.c.started_at),
        JobRow.first_token_at: _since_then(leaders.c.first_token_at),
    }
    given_up = leaders.c.status.in_(_GIVEN_UP) if promote else literal_column("false")
    heirs = select(followers.c.leader, func.min(followers.c.id).label("id")).group_by(followers.c.leader).cte("heirs")
    stays = and_(given_up, JobRow.id != heirs.c.id)
    if claimant is not None:
        now = func.clock_timestamp()
        claimed = {
            JobRow.status: literal_column(f"'{JobStatus.IN_PROGRESS.value}'"),
            JobRow.attempt: JobRow.attempt + 1,
            JobRow.worker: claimant,
            JobRow.attempt_started_at: now,
        }
        released_values |= {column: case((given_up, value), else_=column) for column, value in claimed.items()}
    values: dict[Any, Any] = {
        column: case((stays, column), else_=value) for column, value in released_values.items()
    } | {
        JobRow.follows: case((stays, heirs.c.id)),
        JobRow.cache_key: case((given_up, JobRow.cache_key)),
        JobRow.decisions: case(
            (stays, decided(JobRow.decisions, source=heirs.c.id)),
            else_=decided(JobRow.decisions, outcome=_MISS, source=leaders.c.id),
        ),
    }
    released = (
        update(JobRow)
        .where(
            JobRow.id == followers.c.id,
            leaders.c.id == followers.c.leader,
            heirs.c.leader == followers.c.leader,
            ~func.coalesce(answered, literal_column("false")),
        )
        .values(values)
        .returning(*_change_columns(leaders.c.id), JobRow.follows)
        .cte("followers_released")
    )
    return ended, released


# The columns of a `FollowerChange`.
CHANGE = ("id", "leader", "model", "priority", "status", "seconds", "request_id")


def _change_columns(leader: Any) -> tuple[Any, ...]:
    age = func.extract("epoch", func.coalesce(JobRow.finished_at, func.clock_timestamp()) - JobRow.created_at)
    return (
        JobRow.id,
        leader.label("leader"),
        JobRow.model,
        JobRow.priority,
        JobRow.status,
        age.label("seconds"),
        JobRow.request_id,
    )


def changed_rows(ended: CTE, released: CTE) -> tuple[Select[Any], Select[Any]]:
    """Select the changes that `follower_changes` makes: rows of `CHANGE`, for `read_change`."""
    return (
        select(*(ended.c[name] for name in CHANGE)),
        select(*(released.c[name] for name in CHANGE)).where(released.c.follows.is_(None)),
    )


def orphans(limit: int) -> Select[Any]:
    """Select the leaders of open followers that have ended, lead no more, or do not exist."""
    leader = aliased(JobRow)
    return (
        select(JobRow.follows)
        .where(
            FOLLOWS,
            ~exists().where(leader.id == JobRow.follows, leader.finished_at.is_(None), leader.cache_key.is_not(None)),
        )
        .distinct()
        .limit(limit)
    )


def read_change(row: Any) -> FollowerChange:
    """Build a change from a row of `changed_rows`."""
    return FollowerChange(
        row.id, row.leader, row.model, row.priority, JobStatus(row.status), float(row.seconds), row.request_id
    )


def _since_then(moment: Any) -> Any:
    """A moment of the leader in the life of its follower, which may be younger; NULL if it did not come."""
    return case((moment.is_not(None), func.greatest(moment, JobRow.created_at)))


def decided(decisions: Any, **members: Any) -> Any:
    """A job's decisions with these members of the one about the cache."""
    pairs = itertools.chain.from_iterable((literal_column(f"'{name}'"), value) for name, value in members.items())
    decisions = func.coalesce(decisions, literal_column("'{}'::jsonb"), type_=JSONB)
    cache = func.coalesce(decisions["cache"], literal_column("'{}'::jsonb"), type_=JSONB)
    patch = func.jsonb_strip_nulls(func.jsonb_build_object(*pairs), type_=JSONB)
    return func.jsonb_set(decisions, literal_column("'{cache}'"), cache.op("||")(patch), type_=JSONB)
