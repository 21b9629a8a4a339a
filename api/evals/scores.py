"""SQL of the scores that judges have given, for reports and comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, func, or_, select

from api.evals.judgements import STATE, Outcome
from shared.domain.judgements import JudgementState, RunKind
from shared.postgres.quality_tables import EvalRunRow, JudgementRow
from shared.postgres.store import Store
from shared.postgres.usage_tables import UsageEventRow


@dataclass(slots=True)
class ModelScores:
    """The judgements of a model's answers: how often each score was given, and those without one."""

    model: str
    scores: dict[float, int] = field(default_factory=dict)
    states: dict[str, int] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """The number of scores."""
        return sum(self.scores.values())

    def of(self, state: JudgementState) -> int:
        """The number of judgements in a state."""
        return self.states.get(state.value, 0)


class ScoreStore(Store):
    """Reads scores."""

    async def by_model(
        self, run_ids: Sequence[str], *, since: datetime | None = None, project_id: int | None = None
    ) -> list[ModelScores]:
        """The scores of single answers in runs, by the model that answered, in alphabetical order."""
        statement = (
            select(JudgementRow.model, JudgementRow.state, JudgementRow.score, func.count().label("judgements"))
            .where(JudgementRow.run_id.in_(run_ids), JudgementRow.position == 0, *_narrowed(since, project_id))
            .group_by(JudgementRow.model, JudgementRow.state, JudgementRow.score)
            .order_by(JudgementRow.model)
        )
        found: dict[str, ModelScores] = {}
        for row in await self._all(statement, lambda row: row):
            scores = found.setdefault(row.model, ModelScores(row.model))
            scores.states[row.state] = scores.states.get(row.state, 0) + row.judgements
            if row.state == JudgementState.SCORED.value:
                scores.scores[float(row.score)] = row.judgements
        return list(found.values())

    async def outcomes(self, run_id: str) -> list[Outcome]:
        """What all judgements of a run over a set have come to."""
        statement = select(
            JudgementRow.item, JudgementRow.model, JudgementRow.position, STATE.label("state"), JudgementRow.score
        ).where(JudgementRow.run_id == run_id)
        return await self._all(statement, _outcome)

    async def last_pairwise(self, first: str, second: str, rubric: str | None) -> str | None:
        """The newest pairwise run of two models, in either order, in which at least one item is decided."""
        models = EvalRunRow.options["models"]
        decided = JudgementRow.state.in_((JudgementState.SCORED.value, JudgementState.UNANSWERED.value))
        has_scores = select(JudgementRow.id).where(JudgementRow.run_id == EvalRunRow.id, decided).exists()
        statement = (
            select(EvalRunRow.id)
            .where(EvalRunRow.kind == RunKind.PAIRWISE.value, _are(models, first, second), has_scores)
            .order_by(EvalRunRow.created_at.desc())
            .limit(1)
        )
        if rubric is not None:
            statement = statement.where(EvalRunRow.rubric == rubric)
        return await self._one(statement, lambda row: str(row.id))

    async def cost(
        self, run_ids: Sequence[str], *, since: datetime | None = None, project_id: int | None = None
    ) -> Decimal | None:
        """What the jobs of judgements cost, in dollars; None if the ledger has no price for any of them."""
        statement = (
            select(func.sum(UsageEventRow.cost).label("cost"))
            .join(JudgementRow, JudgementRow.judge_job_id == UsageEventRow.job_id)
            .where(JudgementRow.run_id.in_(run_ids), *_narrowed(since, project_id))
        )
        return await self._one(statement, lambda row: row.cost)


def _outcome(row: Row[Any]) -> Outcome:
    score = None if row.score is None else float(row.score)
    return Outcome(row.item, row.model, row.position, JudgementState(row.state), score)


def _narrowed(since: datetime | None, project_id: int | None) -> list[ColumnElement[bool]]:
    conditions = []
    if since is not None:
        conditions.append(JudgementRow.answered_at >= since)
    if project_id is not None:
        conditions.append(JudgementRow.project_id == project_id)
    return conditions


def _are(models: Any, first: str, second: str) -> ColumnElement[bool]:
    def in_order(one: str, other: str) -> ColumnElement[bool]:
        return and_(models[0].astext == one, models[1].astext == other)

    return or_(in_order(first, second), in_order(second, first))
