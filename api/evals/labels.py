"""SQL of labels: what people say about answers, and how far judges agree with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, exists, func, select, true
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import aliased

from api.evals.judgements import is_scored
from api.keys.store import format_id, parse_id
from shared.postgres.engine import transaction
from shared.postgres.quality_tables import JudgementRow, LabelRow
from shared.postgres.store import Store
from shared.postgres.tables import ApiKeyRow

# Judged answers from which the next one to label is chosen.
NEWEST = 200


@dataclass(frozen=True, slots=True)
class Label:
    """What a person says of an answer."""

    id: int
    rubric: str
    item: str
    project_id: int | None
    # The id of the person's key.
    labeller: str
    score: float
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Pair:
    """The scores of an answer by two raters, of whom the labeller is one."""

    item: str
    labeller: str
    first: int
    second: int


_LABEL = (
    LabelRow.id,
    LabelRow.rubric,
    LabelRow.item,
    LabelRow.project_id,
    LabelRow.labeller,
    LabelRow.score,
    LabelRow.created_at,
)


class LabelStore(Store):
    """Labels, and the answers that are to be labelled."""

    async def put(self, rubric: str, item: str, project_id: int | None, labeller: str, score: float) -> Label:
        """Store a label; it replaces an earlier one of this person."""
        statement = insert(LabelRow).values(
            rubric=rubric, item=item, project_id=project_id, labeller=labeller, score=Decimal(str(score))
        )
        statement = statement.on_conflict_do_update(
            index_elements=[LabelRow.rubric, LabelRow.item, LabelRow.labeller],
            set_={"score": statement.excluded.score, "created_at": func.now()},
        )
        async with transaction(self._engine) as connection:
            return _label((await connection.execute(statement.returning(*_LABEL))).one())

    async def page(self, *, limit: int, after: int | None, rubric: str | None, project_id: int | None) -> list[Label]:
        """Return one page of the labels of a project, or of all (None), newest first."""
        statement = select(*_LABEL).order_by(LabelRow.id.desc()).limit(limit)
        if after is not None:
            statement = statement.where(LabelRow.id < after)
        if rubric is not None:
            statement = statement.where(LabelRow.rubric == rubric)
        if project_id is not None:
            statement = statement.where(LabelRow.project_id == project_id)
        return await self._all(statement, _label)

    async def project_of(self, item: str, run_ids: Sequence[str]) -> tuple[int | None] | None:
        """The project of a judged answer; None if no run has judged it."""
        statement = select(JudgementRow.project_id).where(JudgementRow.item == item, JudgementRow.run_id.in_(run_ids))
        return await self._one(statement.limit(1), lambda row: (row.project_id,))

    async def next_items(self, rubric: str, run_id: str, labeller: str, project_id: int | None) -> list[str]:
        """The newest scored answers of a live run that this person has not labelled, those that others have labelled
        first: answers with labels of two people say how far people agree."""
        own = select(LabelRow.id).where(_of(rubric), LabelRow.labeller == labeller).exists()
        others = select(func.count()).where(_of(rubric)).scalar_subquery()
        judged = (
            select(JudgementRow.item, JudgementRow.answered_at, others.label("labels"))
            .where(JudgementRow.run_id == run_id, is_scored(), ~own, _of_project(project_id))
            .order_by(JudgementRow.answered_at.desc())
            .limit(NEWEST)
            .subquery()
        )
        statement = select(judged.c.item).order_by(
            (judged.c.labels == 1).desc(), judged.c.labels, judged.c.answered_at.desc()
        )
        return await self._all(statement, lambda row: str(row.item))

    async def with_judge(self, rubric: str, run_ids: Sequence[str], project_id: int | None = None) -> list[Pair]:
        """The scores of answers that a judge and a person have given: the judge's first."""
        statement = (
            select(LabelRow.item, LabelRow.labeller, JudgementRow.score.label("first"), LabelRow.score.label("second"))
            .join(JudgementRow, JudgementRow.item == LabelRow.item)
            .where(
                LabelRow.rubric == rubric,
                JudgementRow.run_id.in_(run_ids),
                JudgementRow.position == 0,
                is_scored(),
                _of_project(project_id),
            )
        )
        return await self._all(statement, _pair)

    async def between_people(self, rubric: str, run_ids: Sequence[str], project_id: int | None = None) -> list[Pair]:
        """The scores of answers of these runs that two people have given, once for each pair of them."""
        other = aliased(LabelRow)
        # Answers of other runs were labelled by another question, or on another scale.
        of_runs = exists().where(JudgementRow.item == LabelRow.item, JudgementRow.run_id.in_(run_ids))
        statement = (
            select(LabelRow.item, LabelRow.labeller, LabelRow.score.label("first"), other.score.label("second"))
            .join(other, and_(other.rubric == LabelRow.rubric, other.item == LabelRow.item))
            .where(LabelRow.rubric == rubric, LabelRow.labeller < other.labeller, of_runs)
        )
        if project_id is not None:
            statement = statement.where(LabelRow.project_id == project_id)
        return await self._all(statement, _pair)

    async def names(self, labellers: Iterable[str]) -> dict[str, str]:
        """The names of the keys of labellers. Two keys may have the same name; one that is not known is left out."""
        ids = [number for one in labellers if (number := parse_id(one)) is not None]
        statement = select(ApiKeyRow.id, ApiKeyRow.name).where(ApiKeyRow.id.in_(ids))
        return dict(await self._all(statement, lambda row: (format_id(row.id), row.name))) if ids else {}


def _of(rubric: str) -> ColumnElement[bool]:
    """Condition: a label is of a rubric, and of the judged answer."""
    return and_(LabelRow.rubric == rubric, LabelRow.item == JudgementRow.item)


def _of_project(project_id: int | None) -> ColumnElement[bool]:
    return true() if project_id is None else JudgementRow.project_id == project_id


def _label(row: Any) -> Label:
    return Label(**{**row._asdict(), "score": float(row.score)})


def _pair(row: Row[Any]) -> Pair:
    return Pair(row.item, row.labeller, int(row.first), int(row.second))
