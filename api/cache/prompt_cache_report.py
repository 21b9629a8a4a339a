"""What prompt caches saved a project in tokens, by day and model."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import Date, Integer, Select, func, select
from sqlalchemy import cast as sql_cast

from shared.domain.ids import first_id
from shared.domain.job import JOB_ID_PREFIX
from shared.postgres.store import Store
from shared.postgres.tables import JobRow


@dataclass(frozen=True, slots=True)
class PromptCacheUse:
    """The prompts that a model read for a project's jobs of one day (UTC), in tokens.

    `cached_tokens` were found in a prompt cache; `written_tokens` were stored in one, by upstreams that report them.
    """

    day: date
    model: str
    jobs: int
    prompt_tokens: int
    cached_tokens: int
    written_tokens: int

    @property
    def cached_share(self) -> float:
        """The share of the prompts that was found in the cache, from 0 to 1."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


class PromptCacheReport(Store):
    """Reads the use of prompt caches from the usage of jobs. A purged job keeps its usage, so it still counts."""

    async def of_project(self, project_id: int, days: int) -> list[PromptCacheUse]:
        """The use by the project's jobs of the last `days` days, by day and model.

        Jobs that were answered without an engine, for example from the response cache, do not count.
        """
        return await self._all(_statement(project_id, days), _use)


def _statement(project_id: int, days: int) -> Select[Any]:
    # Ids sort by the time of their creation, so this is a range of the index of a project's jobs.
    first = first_id(JOB_ID_PREFIX, datetime.now(UTC) - timedelta(days=days))
    day = sql_cast(func.timezone("UTC", JobRow.created_at), Date).label("day")

    def total(name: str) -> Any:
        return func.coalesce(func.sum(sql_cast(JobRow.usage[name].astext, Integer)), 0).label(name)

    return (
        select(
            day,
            JobRow.model,
            func.count().label("jobs"),
            total("prompt_tokens"),
            total("cached_tokens"),
            total("cache_write_tokens"),
        )
        .where(JobRow.project_id == project_id, JobRow.id >= first, JobRow.attempt > 0, JobRow.usage.is_not(None))
        .group_by(day, JobRow.model)
        .order_by(day, JobRow.model)
    )


def _use(row: Any) -> PromptCacheUse:
    return PromptCacheUse(row.day, row.model, row.jobs, row.prompt_tokens, row.cached_tokens, row.cache_write_tokens)
