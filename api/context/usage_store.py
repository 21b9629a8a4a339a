"""SQL for the sizes of recent prompts, and the tokens that their usage reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ARRAY, BigInteger, ColumnElement, Integer, Text, bindparam, func, select, true

from shared.domain.job import SUCCEEDED
from shared.postgres.prepared import Prepared
from shared.postgres.store import Store
from shared.postgres.tables import JobRow

# The last jobs that are read: of a model, and of a model and a project.
SAMPLE = 200
# The last jobs of a project, of all models, among which those are searched.
SEARCHED = 400

# The bytes and tokens of prompts, newest first, by model and project.
Prompts = dict[tuple[str, int], list[tuple[int, int]]]

_MODELS = bindparam("models", type_=ARRAY(Text))
_COLUMNS = (
    JobRow.model,
    JobRow.project_id,
    JobRow.status,
    JobRow.attempt,
    JobRow.prompt_bytes,
    JobRow.usage["prompt_tokens"].as_integer().label("tokens"),
)


def _read(each: Any, last: Any, *conditions: ColumnElement[bool]) -> Prepared:
    """Read the jobs that a model ran for: not those that got another job's answer."""
    return Prepared(
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


def _last(conditions: Sequence[ColumnElement[bool]], order: Any) -> Any:
    last = select(*_COLUMNS).where(*conditions).order_by(order.desc())
    return last.limit(bindparam("count", type_=Integer)).lateral("last")


def _recent() -> Prepared:
    names = func.unnest(_MODELS).table_valued("model").render_derived()
    finished = (JobRow.model == names.c.model, JobRow.finished_at.is_not(None))
    return _read(names, _last(finished, JobRow.finished_at))


def _of_projects() -> Prepared:
    ids = bindparam("projects", type_=ARRAY(BigInteger))
    numbers = func.unnest(ids).table_valued("project_id").render_derived()
    last = _last((JobRow.project_id == numbers.c.project_id,), JobRow.id)
    return _read(numbers, last, last.c.model == func.any(_MODELS))


_RECENT = _recent()
_OF_PROJECTS = _of_projects()


class UsageStore(Store):
    """Reads recent usage from PostgreSQL."""

    async def recent(self, models: Sequence[str]) -> Prompts:
        """The prompts of each model's last jobs that succeeded.

        One scan of the index `jobs_finished` per model, of at most `SAMPLE` rows.
        """
        return _by_model(await _RECENT.run(self._engine, {"models": list(models), "count": SAMPLE}))

    async def of_projects(self, models: Sequence[str], projects: Sequence[int]) -> Prompts:
        """The prompts of each project's last jobs of these models that succeeded, at most `SAMPLE` of a model.

        One scan of the index `jobs_by_project` per project, of at most `SEARCHED` rows.
        """
        if not projects:
            return {}
        parameters = {"models": list(models), "projects": list(projects), "count": SEARCHED}
        rows = await _OF_PROJECTS.run(self._engine, parameters)
        return {key: prompts[:SAMPLE] for key, prompts in _by_model(rows).items()}


def _by_model(rows: Iterable[Any]) -> Prompts:
    found: Prompts = {}
    for row in rows:
        found.setdefault((row.model, row.project_id), []).append((row.prompt_bytes, row.tokens))
    return found
