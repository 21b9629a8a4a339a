"""SQL of judgements, and of the jobs of the judges that make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Double,
    Integer,
    Row,
    Update,
    bindparam,
    case,
    cast,
    delete,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from shared.domain.job import TERMINAL, Choice, JobStatus
from shared.domain.judgements import JudgementState, RunKind
from shared.postgres.engine import transaction
from shared.postgres.eval_run_ends import end_if_complete, lock_sets
from shared.postgres.prepared import Prepared
from shared.postgres.quality_tables import EvalRunRow, JudgementRow
from shared.postgres.store import Store, seconds
from shared.postgres.tables import JobRow
from shared.postgres.usage_tables import UsageEventRow

# Until a process that has taken a judgement has to have submitted its job; then another may take it.
LEASE_S = 60.0
# Seconds between two looks at the job of a judgement, from soon after its submission to later ones: a judge's answer
# is deleted a minute after its end, because its level of the request log is `none`. A process that has taken a
# judgement to look at its job, and ends before it has, must not take longer than that either.
MIN_WAIT_S, MAX_WAIT_S = 2.0, 20.0


@dataclass(frozen=True, slots=True)
class NewJudgement:
    """A judgement to make. `position`: 0 of one answer, else which model's answer is shown first.

    `unanswered`: why there is nothing to judge, because a model has not answered. Then it has ended, and `score` is as
    `JudgementState.UNANSWERED` says.
    """

    item: str
    model: str
    position: int = 0
    project_id: int | None = None
    requested_model: str | None = None
    answered_at: datetime | None = None
    unanswered: str | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a judgement of an item of a set has come to."""

    item: str
    model: str
    position: int
    state: JudgementState
    score: float | None


@dataclass(frozen=True, slots=True)
class Judgement:
    """A judgement, with what identifies its run."""

    id: int
    run_id: str
    item: str
    model: str
    position: int
    project_id: int | None
    requested_model: str | None
    judge_job_id: str | None
    state: JudgementState
    score: float | None
    reason: str | None
    answered_at: datetime | None
    created_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class Due:
    """A pending judgement that this process has taken, with its run. `identity`: see `Rubric.identity`."""

    judgement: Judgement
    kind: RunKind
    rubric: str
    judge_model: str
    identity: str


@dataclass(frozen=True, slots=True)
class JudgeJob:
    """The job of a judge. `output` is None if it was deleted."""

    id: str
    model: str
    status: JobStatus
    output: Sequence[Choice] | None
    error: str | None


# The state of a judgement, as `JudgementState` has it.
STATE = case((JudgementRow.erased_at.is_not(None), literal(JudgementState.ERASED.value)), else_=JudgementRow.state)
_JUDGEMENT = (
    JudgementRow.id,
    JudgementRow.run_id,
    JudgementRow.item,
    JudgementRow.model,
    JudgementRow.position,
    JudgementRow.project_id,
    JudgementRow.requested_model,
    JudgementRow.judge_job_id,
    STATE.label("state"),
    JudgementRow.score,
    JudgementRow.reason,
    JudgementRow.answered_at,
    JudgementRow.created_at,
    JudgementRow.ended_at,
)


class JudgementStore(Store):
    """Judgements."""

    async def page(self, run_id: str, *, limit: int, after: int | None = None) -> list[Judgement]:
        """Return one page of the judgements of a run, oldest first."""
        statement = select(*_JUDGEMENT).where(JudgementRow.run_id == run_id).order_by(JudgementRow.id).limit(limit)
        if after is not None:
            statement = statement.where(JudgementRow.id > after)
        return await self._all(statement, _judgement)

    async def add(self, run_id: str, new: Sequence[NewJudgement]) -> list[Judgement]:
        """Add judgements to a run, and return them, with those that it already had, in the order of `new`.

        They are leased to the caller, who submits their jobs. The run ends with the last one that is expected.
        """
        if not new:
            return []
        values = [
            {
                "run_id": run_id,
                "item": one.item,
                "model": one.model,
                "position": one.position,
                "project_id": one.project_id,
                "requested_model": one.requested_model,
                "answered_at": func.now() if one.answered_at is None else one.answered_at,
                "due_at": func.now() + seconds(LEASE_S),
                **({} if one.unanswered is None else _unanswered(one)),
            }
            for one in new
        ]
        found = select(*_JUDGEMENT).where(
            JudgementRow.run_id == run_id, JudgementRow.item.in_({one.item for one in new})
        )
        async with transaction(self._engine) as connection:
            if any(one.unanswered is not None for one in new):
                await connection.execute(lock_sets([run_id]))
            for value in values:
                await connection.execute(insert(JudgementRow).values(value).on_conflict_do_nothing())
            if any(one.unanswered is not None for one in new):
                await connection.execute(end_if_complete(run_id))
            rows = [_judgement(row) for row in await connection.execute(found)]
        by_key = {(row.item, row.model, row.position): row for row in rows}
        return [by_key[one.item, one.model, one.position] for one in new]

    async def take_due(self, limit: int, *, submitted: bool) -> list[Due]:
        """Take pending judgements whose turn it is: those with a job (`submitted`), or those without. No other process
        gets them until their lease has ended."""
        rows = await _TAKE_DUE[submitted].run(self._engine, {"limit": limit})
        return [
            Due(_judgement(row), RunKind(row.run_kind), row.run_rubric, row.run_judge, row.run_identity or "")
            for row in rows
        ]

    async def submitted(self, judgement_id: int, job_id: str) -> bool:
        """Note the job of a judgement. False: it is not open any more."""
        return await self._changes(
            update(JudgementRow)
            .where(JudgementRow.id == judgement_id, JudgementRow.state == JudgementState.PENDING.value)
            .values(judge_job_id=job_id, due_at=func.now() + seconds(MIN_WAIT_S))
        )

    async def look_again(self, judgement_ids: Sequence[int]) -> None:
        """Look at the jobs of these judgements again: the longer they take, the less often."""
        age = func.extract("epoch", func.now() - JudgementRow.created_at)
        wait_s = func.least(func.greatest(cast(age, Double) / 4, MIN_WAIT_S), MAX_WAIT_S)
        await self._changes(
            update(JudgementRow)
            .where(JudgementRow.id.in_(judgement_ids), JudgementRow.state == JudgementState.PENDING.value)
            .values(due_at=func.now() + seconds(wait_s))
        )

    async def drop(self, judgement_id: int) -> None:
        """Remove a judgement that was not submitted."""
        await self._changes(
            delete(JudgementRow).where(JudgementRow.id == judgement_id, JudgementRow.judge_job_id.is_(None))
        )

    async def end(
        self, judgement_id: int, state: JudgementState, *, score: float | None = None, reason: str | None = None
    ) -> bool:
        """End a judgement, and its run with the last one that is expected. False: it has ended before."""
        ended = (
            update(JudgementRow)
            .where(JudgementRow.id == judgement_id, JudgementRow.state == JudgementState.PENDING.value)
            .values(
                state=state.value,
                score=None if score is None else Decimal(str(score)),
                reason=reason,
                ended_at=func.now(),
            )
            .returning(JudgementRow.run_id)
        )
        run_of = select(JudgementRow.run_id).where(JudgementRow.id == judgement_id)
        async with transaction(self._engine) as connection:
            await connection.execute(lock_sets(run_of))
            run_id = await connection.scalar(ended)
            if run_id is None:
                return False
            await connection.execute(end_if_complete(run_id))
        return True

    async def jobs(self, job_ids: Sequence[str]) -> dict[str, JudgeJob]:
        """The jobs of judges, by id; those that have not ended without their output."""
        has_ended = JobRow.status.in_([status.value for status in TERMINAL])
        statement = select(
            JobRow.id,
            JobRow.model,
            JobRow.status,
            case((has_ended, JobRow.output)).label("output"),
            JobRow.error_code,
        ).where(JobRow.id.in_(job_ids))
        return {job.id: job for job in await self._all(statement, _judge_job)}

    async def costs(self, job_ids: Sequence[str]) -> dict[str, Decimal]:
        """What jobs cost the installation, in dollars, by model; without attempts that have no price."""
        statement = (
            select(UsageEventRow.model, func.sum(UsageEventRow.cost).label("cost"))
            .where(UsageEventRow.job_id.in_(job_ids), UsageEventRow.cost.is_not(None))
            .group_by(UsageEventRow.model)
        )
        return dict(await self._all(statement, lambda row: (row.model, row.cost)))


def _take_due(*, submitted: bool) -> Update:
    """Lease pending judgements whose turn it is. Its parameter is `limit`."""
    has_job = JudgementRow.judge_job_id.is_not(None) if submitted else JudgementRow.judge_job_id.is_(None)
    due = (
        select(JudgementRow.id)
        .where(JudgementRow.state == JudgementState.PENDING.value, JudgementRow.due_at <= func.now(), has_job)
        .order_by(JudgementRow.due_at)
        .limit(bindparam("limit", type_=Integer))
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    return (
        update(JudgementRow)
        .where(JudgementRow.id == due.c.id, EvalRunRow.id == JudgementRow.run_id)
        .values(due_at=func.now() + seconds(MAX_WAIT_S if submitted else LEASE_S))
        .returning(
            *_JUDGEMENT,
            EvalRunRow.kind.label("run_kind"),
            EvalRunRow.rubric.label("run_rubric"),
            EvalRunRow.judge_model.label("run_judge"),
            EvalRunRow.options["identity"].astext.label("run_identity"),
        )
    )


# Every API process runs them every few seconds.
_TAKE_DUE = {submitted: Prepared(_take_due(submitted=submitted)) for submitted in (True, False)}


def _unanswered(new: NewJudgement) -> dict[str, Any]:
    """The columns of a judgement that has ended before it began."""
    return {
        "state": JudgementState.UNANSWERED.value,
        "score": None if new.score is None else Decimal(str(new.score)),
        "reason": new.unanswered,
        "ended_at": func.now(),
    }


def _judgement(row: Any) -> Judgement:
    values = {column.key: getattr(row, column.key) for column in _JUDGEMENT}
    return Judgement(
        **{
            **values,
            "state": JudgementState(row.state),
            "score": None if row.score is None else float(row.score),
        }
    )


def _judge_job(row: Row[Any]) -> JudgeJob:
    output = None if row.output is None else tuple(Choice.of(one) for one in row.output)
    return JudgeJob(row.id, row.model, JobStatus(row.status), output, row.error_code)


def is_scored() -> ColumnElement[bool]:
    """Condition: a judgement has a score."""
    return JudgementRow.state == JudgementState.SCORED.value
