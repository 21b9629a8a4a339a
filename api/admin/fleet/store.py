"""SQL about workers, and about models whose queues are paused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from shared.postgres.store import Store
from shared.postgres.tables import ModelPauseRow, PastPauseRow, WorkerRow


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker. `alive`: its lease has not expired; rows of others are kept for an hour.

    `waiting`: requests that its engine has accepted but not started. See `shared.domain.job.WorkerReport`.
    """

    id: str
    model: str
    state: str
    state_since: datetime | None
    alive: bool
    slots: int
    running: int
    waiting: int
    kv_cache_usage: float | None
    tokens_per_s: float | None
    started_at: datetime
    lease_expires_at: datetime
    version: str | None
    options: Mapping[str, Any]
    breaker_since: datetime | None
    breaker_reason: str | None
    last_error: str | None
    drain_requested_at: datetime | None


_ALIVE = WorkerRow.lease_expires_at > func.clock_timestamp()
_COLUMNS = (*WorkerRow.__table__.columns, _ALIVE.label("alive"))


def workers_statement() -> Select[Any]:
    """Select all workers, by model."""
    return select(*_COLUMNS).order_by(WorkerRow.model, WorkerRow.id)


def to_worker(row: Any) -> WorkerInfo:
    """Build a worker from a row of `workers_statement`."""
    return WorkerInfo(**{name: getattr(row, name) for name in WorkerInfo.__dataclass_fields__})


class FleetStore(Store):
    """Workers and pauses."""

    async def workers(self) -> list[WorkerInfo]:
        """Return all workers, by model; dead ones too, for an hour."""
        return await self._all(workers_statement(), to_worker)

    async def worker(self, worker_id: str) -> WorkerInfo | None:
        """Return a worker."""
        return await self._one(select(*_COLUMNS).where(WorkerRow.id == worker_id), to_worker)

    async def live_workers(self, model: str) -> list[str]:
        """Return the ids of a model's live workers."""
        return await self._all(select(WorkerRow.id).where(WorkerRow.model == model, _ALIVE), lambda row: str(row.id))

    async def request_drain(self, worker_id: str) -> bool:
        """Order a worker to finish its jobs and stop. False: it is not alive."""
        requested_at = func.coalesce(WorkerRow.drain_requested_at, func.clock_timestamp())
        statement = update(WorkerRow).where(WorkerRow.id == worker_id, _ALIVE).values(drain_requested_at=requested_at)
        return await self._changes(statement)

    async def pauses(self) -> dict[str, datetime]:
        """Return the paused models, and since when they are."""
        rows = await self._all(select(ModelPauseRow), lambda row: (str(row.model), row.paused_at))
        return dict(rows)

    async def pause(self, models: Sequence[str], key_id: int) -> None:
        """Pause the queue of these models: claims that begin after this has returned find none of their jobs."""
        statement = insert(ModelPauseRow).values([{"model": model, "key_id": key_id} for model in models])
        await self._changes(statement.on_conflict_do_nothing(index_elements=[ModelPauseRow.model]))

    async def resume(self, models: Sequence[str]) -> None:
        """Resume the queue of these models, and remember the pause for the statistics of their jobs."""
        deleted = delete(ModelPauseRow).where(ModelPauseRow.model.in_(models))
        ended = deleted.returning(ModelPauseRow.model, ModelPauseRow.paused_at).cte("ended")
        past = select(ended.c.model, func.clock_timestamp(), ended.c.paused_at)
        columns = [PastPauseRow.model, PastPauseRow.resumed_at, PastPauseRow.paused_at]
        await self._changes(insert(PastPauseRow).from_select(columns, past))
