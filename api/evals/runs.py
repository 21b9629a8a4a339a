"""SQL of runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Row,
    Select,
    and_,
    cast,
    func,
    literal,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy import Text as SqlText
from sqlalchemy.dialects.postgresql import JSONB, insert

from api.evals.judgements import STATE
from api.evals.rubrics import Rubric
from shared.domain.ids import is_id, new_id
from shared.domain.judgements import JudgementState, RunKind
from shared.postgres.engine import transaction
from shared.postgres.quality_tables import EvalRunRow, JudgementRow
from shared.postgres.store import Store, seconds

RUN_PREFIX = "evalrun_"
# A run over a set to which its client has added no item for this time ends without those that are missing.
ABANDONED_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Run:
    """A run. `counts`: its judgements by state."""

    id: str
    kind: RunKind
    project_id: int | None
    rubric: str
    prompt_version: str
    judge_model: str
    options: Mapping[str, Any]
    created_at: datetime
    ended_at: datetime | None
    counts: Mapping[str, int]


_RUN = (
    EvalRunRow.id,
    EvalRunRow.kind,
    EvalRunRow.project_id,
    EvalRunRow.rubric,
    EvalRunRow.prompt_version,
    EvalRunRow.judge_model,
    EvalRunRow.options,
    EvalRunRow.created_at,
    EvalRunRow.ended_at,
)


def is_run_id(text: str) -> bool:
    """Whether a text has the form of the id of a run; that of a live run is derived from its rubric."""
    return is_id(RUN_PREFIX, text) or re.fullmatch(f"{RUN_PREFIX}live_[0-9a-f]{{24}}", text) is not None


def live_run_id(rubric: Rubric) -> str:
    """The id of the live run of a rubric: the same in all processes, and another one if the rubric changes."""
    return f"{RUN_PREFIX}live_{rubric.identity()}"


class RunStore(Store):
    """Runs."""

    async def create(
        self, kind: RunKind, rubric: Rubric, options: Mapping[str, Any], *, project_id: int | None = None
    ) -> Run:
        """Create a run over a set."""
        values = {
            "id": new_id(RUN_PREFIX, self._region),
            "kind": kind.value,
            "project_id": project_id,
            "rubric": rubric.name,
            "prompt_version": rubric.prompt_version,
            "judge_model": rubric.judge,
            "options": {**options, "identity": rubric.identity(), "scale": str(rubric.scale)},
        }
        async with transaction(self._engine) as connection:
            row = (await connection.execute(insert(EvalRunRow).values(values).returning(*_RUN))).one()
        return Run(**{**row._asdict(), "kind": kind}, counts={})

    async def get(self, run_id: str) -> Run | None:
        """Return a run."""
        return await self._one(_runs().where(EvalRunRow.id == run_id), _run)

    async def page(self, *, limit: int, after: str | None = None, rubric: str | None = None) -> list[Run]:
        """Return one page of runs, newest first."""
        statement = _runs().order_by(EvalRunRow.created_at.desc(), EvalRunRow.id.desc()).limit(limit)
        if rubric is not None:
            statement = statement.where(EvalRunRow.rubric == rubric)
        if after is not None:
            at = select(EvalRunRow.created_at).where(EvalRunRow.id == after).scalar_subquery()
            statement = statement.where(
                or_(EvalRunRow.created_at < at, and_(EvalRunRow.created_at == at, EvalRunRow.id < after))
            )
        return await self._all(statement, _run)

    async def end_abandoned(self) -> int:
        """End runs over sets whose items are not all there and that nobody brings any more; return their number.

        Their judgements are fewer than the run expects.
        """
        row = JudgementRow
        since = func.now() - seconds(ABANDONED_S)
        is_active = (
            select(row.id)
            .where(row.run_id == EvalRunRow.id, or_(row.state == JudgementState.PENDING.value, row.created_at > since))
            .exists()
        )
        ended = (
            update(EvalRunRow)
            .where(
                EvalRunRow.kind != RunKind.LIVE.value,
                EvalRunRow.ended_at.is_(None),
                EvalRunRow.created_at < since,
                ~is_active,
            )
            .values(ended_at=func.now())
        )
        async with self._engine.connect() as connection:
            return (await connection.execute(ended)).rowcount


def _runs() -> Select[Any]:
    counted = (
        select(STATE.label("state"), func.count().label("judgements"))
        .where(JudgementRow.run_id == EvalRunRow.id)
        .group_by(literal_column("1"))
        .correlate(EvalRunRow)
        .subquery()
    )
    counts = select(func.jsonb_object_agg(counted.c.state, counted.c.judgements)).scalar_subquery()
    return select(*_RUN, func.coalesce(counts, cast(literal("{}", SqlText), JSONB)).label("counts"))


def _run(row: Row[Any]) -> Run:
    return Run(**{**row._asdict(), "kind": RunKind(row.kind)})
