"""SQL for the sizes of recent prompts, and the tokens that their usage reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ARRAY, BigInteger, ColumnElement, Select, Text, bindparam, func, select, true

from shared.domain.job import SUCCEEDED
from shared.postgres.store import Store
from shared.postgres.tables import JobRow

# The last jobs that are read: of a model, and of a model and a project.
SAMPLE = 200
# The last jobs of a project, of all models, among which those are searched.
SEARCHED = 400

# The bytes and tokens of prompts, newest first, by model and project.
Prompts = dict[tuple[str, int], list[tuple[int, int]]]

_COLUMNS = (
    JobRow.model,
    JobRow.project_id,
    JobRow.status,
    JobRow.attempt,
    JobRow.prompt_bytes,
    JobRow.usage["prompt_tokens"].as_integer().label("tokens"),
)


class UsageStore(Store):
    """Reads recent usage from PostgreSQL."""

    async def recent(self, models: Sequence[str]) -> Prompts:
        """The prompts of each model's last jobs that succeeded.

        One scan of the index `jobs_finished` per model, of at most `SAMPLE` rows.
        """
        names = func.unnest(bindparam("models", list(models), type_=ARRAY(Text))).table_valued("model").render_derived()
        finished = (JobRow.model == names.c.model, JobRow.finished_at.is_not(None))
        return await self._read(names, _last(finished, JobRow.finished_at, SAMPLE))

    async def of_projects(self, models: Sequence[str], projects: Sequence[int]) -> Prompts:
        """The prompts of each project's last jobs of these models that succeeded, at most `SAMPLE` of a model.

        One scan of the index `jobs_by_project` per project, of at most `SEARCHED` rows.
        """
        if not projects:
            return {}
        ids = bindparam("projects", list(projects), type_=ARRAY(BigInteger))
        numbers = func.unnest(ids).table_valued("project_id").render_derived()
        last = _last((JobRow.project_id == numbers.c.project_id,), JobRow.id, SEARCHED)
        known = last.c.model == func.any(bindparam("models", list(models), type_=ARRAY(Text)))
        return {key: prompts[:SAMPLE] for key, prompts in (await self._read(numbers, last, known)).items()}

    async def _read(self, each: Any, last: Any, *conditions: ColumnElement[bool]) -> Prompts:
        """Read the jobs that a model ran for: not those that got another job's answer."""
        statement: Select[Any] = (
            select(last.c.model, last.c.project_id, last.c.prompt_bytes, last.c.tokens)
            .select_from(each)
            .join(last, true())
            .where(
                last.c.status.in_(SUCCEEDED),
                last.c.attempt > 0,
                last.c.prompt_bytes > 0,
                last.c.tokens > 0,
                *conditions,
            )
        )
        found: Prompts = {}
        async with self._engine.connect() as connection:
            for model, project_id, size, tokens in await connection.execute(statement):
                found.setdefault((model, project_id), []).append((size, tokens))
        return found


def _last(conditions: Sequence[ColumnElement[bool]], order: Any, count: int) -> Any:
    return select(*_COLUMNS).where(*conditions).order_by(order.desc()).limit(count).lateral("last")
