"""SQL of the savings report."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import BigInteger, Date, Row, Select, cast, func, select

from shared.domain.ids import first_id
from shared.domain.job import JOB_ID_PREFIX, SUCCEEDED
from shared.postgres.store import Store
from shared.postgres.tables import JobRow


@dataclass(frozen=True, slots=True)
class UsageRow:
    """The jobs of one day (UTC) with the same model, route and part of the response cache, and their tokens together.

    `route` is None if the client named the model; `outcome` is None if the response cache was off. `kind`: the purpose
    of jobs that the server submitted itself.
    """

    day: date
    model: str
    route: str | None
    outcome: str | None
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    kind: str | None = None


class SavingsStore(Store):
    """Reads the usage of a project's jobs."""

    async def usage(self, project_id: int, since: datetime) -> list[UsageRow]:
        """The usage of the jobs that were created since then and have succeeded."""
        return await self._all(self.statement(project_id, since), _usage_row)

    @staticmethod
    def statement(project_id: int, since: datetime) -> Select[Any]:
        """The statement that reads it: a range of the index of a project's jobs, because ids begin with a time."""
        day = cast(func.timezone("UTC", JobRow.created_at), Date)
        route = JobRow.decisions["route"]["route"].astext
        outcome = JobRow.decisions["cache"]["outcome"].astext
        # With those that a job has inherited from one that it followed: that one has not succeeded, and is left out.
        tokens = (
            func.coalesce(func.sum(cast(JobRow.usage[name].astext, BigInteger)), 0)
            for name in ("prompt_tokens", "cached_tokens", "completion_tokens")
        )
        return (
            select(day, JobRow.model, route, outcome, JobRow.kind, func.count(), *tokens)
            .where(
                JobRow.project_id == project_id,
                JobRow.id >= first_id(JOB_ID_PREFIX, since),
                JobRow.status.in_(SUCCEEDED),
                JobRow.usage.is_not(None),
            )
            .group_by(day, JobRow.model, route, outcome, JobRow.kind)
            .order_by(day, JobRow.model)
        )


def _usage_row(row: Row[Any]) -> UsageRow:
    day, model, route, outcome, kind, requests, *sums = tuple(row)
    prompt, cached, completion = map(int, sums)  # sums of bigint are numeric
    return UsageRow(day, model, route, outcome, requests, prompt, cached, completion, kind)
