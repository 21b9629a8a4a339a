"""SQL about followers: jobs that wait for the answer of their leader, another open job with the same request.

A follower is queued and has no message. It names its group, and the group's last leader is its leader (`leader_of`). So
a change of the leader concerns two rows, however many followers there are. What happens to the followers depends on how
their leader ends:

* It is cancelled or expires: in the same statement, the most urgent follower, of these the oldest, takes the lead of
  the group (`promote_followers`).
* It moves to another model, and so loses its cache key: in the same statement, each becomes a job of its own
  (`release_followers`).
* It has an answer, or fails: after its end is committed, they end with the same answer, or are released to the queue
  (`settle_followers`). A copy of the answer takes time and space, so this is done in portions.

`settle_followers` also covers the followers that the first two statements could not see, because they were inserted at
the same time: they have no leader any more, or one that they are not to wait for, because it is queued with a lower
priority. The process that ends a leader, the one that inserts a follower, and every sweep run it, as do readers.
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
    Text,
    and_,
    case,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    true,
    type_coerce,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import aliased

from shared.domain.decisions import CacheOutcome
from shared.domain.errors import ErrorCode
from shared.domain.job import SUCCEEDED, JobStatus
from shared.domain.priorities import Hint, to_front
from shared.postgres.ledger import OWNER_COLUMNS
from shared.postgres.request_log import LOGGED_COLUMNS
from shared.postgres.tables import JobRow

# Most followers of a leader that one statement settles, and about the bytes that it copies, compressed.
PORTION = 1000
PORTION_BYTES = 4 * 1024 * 1024


def _literals(values: Iterable[str]) -> list[ColumnElement[str]]:
    return [literal_column(f"'{value}'::text") for value in values]


_SUCCEEDED = _literals(SUCCEEDED)
# Leaders that end so have a successor.
SUCCEEDED_BY_FOLLOWER = _literals((JobStatus.CANCELLED, JobStatus.EXPIRED))
COALESCED, _MISS = _literals((CacheOutcome.COALESCED, CacheOutcome.MISS))
_EXHAUSTED: ColumnElement[str] = literal_column(f"'{ErrorCode.ATTEMPTS_EXHAUSTED.value}'::text")
_FALSE = literal_column("false", Boolean)
_ONE = literal_column("1", Integer)
_QUEUED: ColumnElement[str] = literal_column(f"'{JobStatus.QUEUED.value}'::text")


@dataclass(frozen=True, slots=True)
class FollowerChange:
    """A change of a follower: it has ended with its leader, was released to the queue, or continues its generation.

    `status` is the follower's status now, `seconds` its age, and `first` whether it is the first one that its leader's
    end has released.
    """

    job_id: str
    leader: str
    model: str
    priority: int
    status: JobStatus
    seconds: float
    request_id: str | None
    first: bool

    @property
    def hint(self) -> Hint:
        """The message of a released job. The first one takes its leader's turn; the others wait for theirs."""
        hint = Hint(self.job_id, self.model, self.priority)
        return to_front(hint) if self.first else hint


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a job was written, with these changes of its followers. `leads`: it may have others."""

    followers: tuple[FollowerChange, ...] = ()
    leads: bool = False


# The columns of leaders that the values of released followers depend on.
LEADER_COLUMNS = (
    JobRow.id,
    JobRow.leads,
    JobRow.lead_number,
    JobRow.priority,
    JobRow.status,
    JobRow.attempt,
    JobRow.deaths,
    JobRow.suspect,
    JobRow.continues,
    JobRow.cache_key,
    JobRow.started_at,
    JobRow.first_token_at,
    JobRow.finished_at,
    JobRow.error_code,
    JobRow.usage,
)
# Those that the values of ended followers depend on, too.
ANSWER_COLUMNS = (
    JobRow.error_message,
    JobRow.error_param,
    JobRow.attempts,
    JobRow.decisions,
    JobRow.output,
    JobRow.log,
)

# Condition: the job follows another one. An index has the same condition.
FOLLOWS = and_(JobRow.follows.is_not(None), JobRow.finished_at.is_(None))


def group_of(leader: Any) -> ColumnElement[str]:
    """The group that a job leads or has led."""
    group: ColumnElement[str] = func.coalesce(leader.leads, leader.id)
    return group


def leader_of(group: Any) -> ColumnElement[str]:
    """The last leader of a group."""
    row = aliased(JobRow)
    later = select(row.id).where(row.leads == group).order_by(row.lead_number.desc()).limit(_ONE)
    leader: ColumnElement[str] = func.coalesce(later.correlate_except(row).scalar_subquery(), group)
    return leader


# The job that a job follows or, if it has ended, whose answer or beginning it has.
LEADER = case(
    (JobRow.follows.is_(None), null()),
    (JobRow.finished_at.is_not(None), JobRow.decisions["cache"]["source"].astext),
    # As text: a RETURNING clause of an INSERT would not be correlated.
    else_=leader_of(literal_column("jobs.follows", Text)),
).label("follows")


def promote_followers(leaders: CTE, claimant: Any = None) -> CTE:
    """Let a follower of each leader take the lead; `leaders` have their `LEADER_COLUMNS`.

    With `claimant`, it is claimed, as its first attempt, by the worker that continues the generation. Returns the
    followers that lead now, with the columns `CHANGE`. The others are not written: they follow their group.
    """
    successors = _locked(leaders, limit=_ONE)
    values = _released(leaders)
    del values[JobRow.cache_key], values[JobRow.entry_key]
    values |= {
        JobRow.leads: JobRow.follows,
        JobRow.lead_number: func.coalesce(leaders.c.lead_number, literal_column("0")) + _ONE,
    }
    if claimant is not None:
        del values[JobRow.suspect]  # the generation that it continues is running already
        values |= {
            # The engine has computed the prompt once, too.
            JobRow.decisions: with_cache_decision(
                JobRow.decisions, outcome=_MISS, source=leaders.c.id, inherited=leaders.c.usage
            ),
            JobRow.status: literal(JobStatus.IN_PROGRESS.value),
            JobRow.attempt: JobRow.attempt + 1,
            JobRow.worker: claimant,
            JobRow.attempt_started_at: func.clock_timestamp(),
        }
    return (
        update(JobRow)
        .where(JobRow.id == successors.c.id, leaders.c.id == successors.c.leader)
        .values(values)
        .returning(*_change(leaders.c.id, literal_column("true", Boolean)))
        .cte("followers_promoted")
    )


def release_followers(leaders: CTE) -> CTE:
    """Release all followers of the leaders, which have their `LEADER_COLUMNS`. Returns rows as `promote_followers`."""
    return _release(leaders, _locked(leaders))


def settle_followers(leaders: CTE, *, portion_bytes: Any = None, follower: Any = None) -> tuple[CTE, CTE]:
    """End or release a portion of the followers of each leader; or, with `follower`, only that one.

    A portion is at most `PORTION` followers; of those that end, as many as get about `portion_bytes`, but at least one.

    `leaders`, which have ended, have lost their cache key, do not exist, or wait (`is_waiting`), have their
    `LEADER_COLUMNS` and `ANSWER_COLUMNS`. Of those that wait, only the followers that are more urgent are released.
    Returns the followers that have ended, with the columns `CHANGE` and those of `with_effects`, through which all
    jobs end; and the released ones.

    A follower fails with its leader if that has used up its attempts, because the same request would cause the same
    deaths; not if it can still move to another model.
    """
    # The answer of a leader without a key is that of another model.
    has_end = and_(leaders.c.cache_key.is_not(None), leaders.c.log.is_not(None))
    succeeded, exhausted = leaders.c.status.in_(_SUCCEEDED), leaders.c.error_code == _EXHAUSTED
    limit = None
    if follower is None:
        # As it is stored: it is copied without being decompressed.
        size = func.pg_column_size(leaders.c.output) + func.pg_column_size(leaders.c.log)
        copies = func.least(PORTION, func.greatest(portion_bytes // func.greatest(size, 1, type_=Integer), 1))
        limit = case((and_(has_end, or_(succeeded, exhausted)), copies), else_=PORTION)
    has_left = or_(leaders.c.finished_at.is_not(None), leaders.c.cache_key.is_(None))
    is_released = or_(has_left, JobRow.priority < leaders.c.priority)
    followers = _locked(leaders, is_released, limit=limit, skip_locked=follower is None, follower=follower)
    fallbacks = func.coalesce(func.jsonb_array_length(JobRow.decisions["route"]["fallbacks"]), 0)
    ends = func.coalesce(and_(has_end, or_(succeeded, and_(exhausted, fallbacks == 0))), _FALSE)
    ended = (
        update(JobRow)
        .where(JobRow.id == followers.c.id, leaders.c.id == followers.c.leader, ends)
        .values(
            {
                JobRow.status: leaders.c.status,
                JobRow.finished_at: func.greatest(leaders.c.finished_at, JobRow.created_at),
                JobRow.started_at: func.greatest(leaders.c.started_at, JobRow.created_at),
                JobRow.first_token_at: _not_before_creation(leaders.c.first_token_at),
                JobRow.output: leaders.c.output,
                JobRow.usage: leaders.c.usage,
                JobRow.log: leaders.c.log,
                JobRow.error_code: leaders.c.error_code,
                JobRow.error_message: leaders.c.error_message,
                JobRow.error_param: leaders.c.error_param,
                JobRow.decisions: with_cache_decision(
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
            *_change(leaders.c.id, _FALSE),
            *OWNER_COLUMNS,
            *(one for one in LOGGED_COLUMNS if one.key not in CHANGE),
            JobRow.cache_key,
            JobRow.decisions,
            null().cast(JSONB).label("upstream"),
            _FALSE.label("cacheable"),
            literal_column("0", Integer).label("answer_bytes"),
        )
        .cte("followers_ended")
    )
    return ended, _release(leaders, followers, ~ends, has_left=has_left)


def is_waiting(leader: Any) -> ColumnElement[bool]:
    """Condition: the leader waits for its first attempt, and has no output."""
    return and_(leader.status == _QUEUED, leader.attempt == literal_column("0"), leader.continues.is_(None))


def _locked(
    leaders: CTE, *conditions: ColumnElement[bool], limit: Any = None, skip_locked: bool = False, follower: Any = None
) -> CTE:
    """Lock open followers: `id`, `leader`, and the `place` among the followers of that leader, from 1.

    With `limit`, at most as many of each leader; with `skip_locked`, without those that others have locked, and so
    decide about. Once they are locked, the conditions are checked again, so none of them ends or is released elsewhere
    meanwhile.
    """
    rows = (
        select(JobRow.id, JobRow.priority)
        .where(JobRow.follows == group_of(leaders.c), JobRow.finished_at.is_(None), *conditions)
        .order_by(JobRow.priority, JobRow.id)
        .with_for_update(skip_locked=skip_locked)
    )
    if follower is not None:
        rows = rows.where(JobRow.id == follower)
    if limit is not None:
        rows = rows.limit(limit)
    followers = rows.lateral("open_followers")
    place = func.row_number().over(partition_by=leaders.c.id, order_by=(followers.c.priority, followers.c.id))
    return (
        select(followers.c.id, leaders.c.id.label("leader"), place.label("place"))
        .join_from(leaders, followers, true())
        .cte("followers")
    )


def _released(leaders: CTE) -> dict[Any, Any]:
    """The values of a follower that becomes a job of its own.

    It inherits what is known of the same request: the deaths of engines that it has caused, and the tokens that its
    answer begins with.
    """
    # A job without an attempt has no log of its own, only the beginning that it had from an earlier leader. The log of
    # one that has moved is that of another model.
    begins_with = case(
        (and_(leaders.c.cache_key.is_not(None), leaders.c.attempt == literal_column("0")), leaders.c.continues),
        (or_(leaders.c.finished_at.is_(None), leaders.c.cache_key.is_(None)), literal_column("''")),
        else_=leaders.c.id,
    )
    usage = type_coerce(leaders.c.usage, JSONB)
    names = ("completion_tokens", "reasoning_tokens")
    counts = itertools.chain.from_iterable((literal_column(f"'{name}'"), usage[name]) for name in names)
    inherited = case((begins_with != literal_column("''"), func.jsonb_build_object(*counts)))
    suspected = or_(leaders.c.suspect, leaders.c.error_code == _EXHAUSTED)
    return {
        JobRow.follows: null(),
        JobRow.cache_key: null(),
        # Its answer is stored, although it leads no others.
        JobRow.entry_key: JobRow.cache_key,
        JobRow.continues: begins_with,
        JobRow.dispatched_at: func.clock_timestamp(),
        JobRow.started_at: _not_before_creation(leaders.c.started_at),
        JobRow.first_token_at: _not_before_creation(leaders.c.first_token_at),
        JobRow.deaths: func.greatest(JobRow.deaths, leaders.c.deaths),
        JobRow.suspect: or_(JobRow.suspect, func.coalesce(suspected, _FALSE)),
        JobRow.decisions: with_cache_decision(
            JobRow.decisions, outcome=_MISS, source=leaders.c.id, inherited=inherited
        ),
    }


def _release(
    leaders: CTE, followers: CTE, *conditions: ColumnElement[bool], has_left: ColumnElement[bool] | None = None
) -> CTE:
    """`has_left`: whether the leader leaves its turn to the first of them; by default, each does."""
    is_first = followers.c.place == _ONE
    return (
        update(JobRow)
        .where(JobRow.id == followers.c.id, leaders.c.id == followers.c.leader, *conditions)
        .values(_released(leaders))
        .returning(*_change(leaders.c.id, is_first if has_left is None else and_(is_first, has_left)))
        .cte("followers_released")
    )


# The columns of a `FollowerChange`.
CHANGE = ("id", "leader", "model", "priority", "status", "seconds", "request_id", "first")


def _change(leader: Any, first: Any) -> tuple[Any, ...]:
    age = func.extract("epoch", func.coalesce(JobRow.finished_at, func.clock_timestamp()) - JobRow.created_at)
    return (
        JobRow.id,
        leader.label("leader"),
        JobRow.model,
        JobRow.priority,
        JobRow.status,
        age.label("seconds"),
        JobRow.request_id,
        first.label("first"),
    )


def changed_rows(changed: CTE) -> Select[Any]:
    """Select followers that have ended or follow no job any more: rows of `CHANGE`, for `read_change`."""
    return select(*(changed.c[name] for name in CHANGE))


def orphans(limit: int, *conditions: ColumnElement[bool]) -> Select[Any]:
    """Select the groups of open followers that `settle_followers` ends or releases.

    `conditions`: on the followers, as those whose groups are to be left out.
    """
    groups = (
        select(JobRow.follows.label("id"), func.min(JobRow.priority).label("priority"))
        .where(FOLLOWS, *conditions)
        .group_by(JobRow.follows)
        .subquery("groups")
    )
    row = aliased(JobRow)
    leads = and_(row.finished_at.is_(None), row.cache_key.is_not(None))
    leader = (
        select(row.id, and_(leads, or_(~is_waiting(row), row.priority <= groups.c.priority)).label("leads"))
        .where(row.id == leader_of(groups.c.id))
        .limit(_ONE)
        .lateral("leader")
    )
    return (
        select(groups.c.id)
        .join_from(groups, leader, true(), isouter=True)
        .where(func.coalesce(leader.c.leads, _FALSE).is_(_FALSE))
        .limit(literal_column(str(limit), Integer))
    )


def read_change(row: Any) -> FollowerChange:
    """Build a change from a row of `ended_rows` or `released_rows`."""
    return FollowerChange(
        job_id=row.id,
        leader=row.leader,
        model=row.model,
        priority=row.priority,
        status=JobStatus(row.status),
        seconds=float(row.seconds),
        request_id=row.request_id,
        first=row.first,
    )


def _not_before_creation(moment: Any) -> Any:
    """A time of the leader, for its follower, which may be younger; NULL if there is none."""
    return case((moment.is_not(None), func.greatest(moment, JobRow.created_at)))


def with_cache_decision(decisions: Any, **members: Any) -> Any:
    """A job's decisions, with these members of its `CacheDecision` changed."""
    pairs = itertools.chain.from_iterable((literal_column(f"'{name}'"), value) for name, value in members.items())
    decisions = func.coalesce(decisions, literal_column("'{}'::jsonb"), type_=JSONB)
    cache = func.coalesce(decisions["cache"], literal_column("'{}'::jsonb"), type_=JSONB)
    patch = func.jsonb_strip_nulls(func.jsonb_build_object(*pairs), type_=JSONB)
    return func.jsonb_set(decisions, literal_column("'{cache}'"), cache.op("||")(patch), type_=JSONB)
