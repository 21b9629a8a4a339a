"""SQL about workers, and about models whose queues are paused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from shared.domain.engine_info import EngineInfo
from shared.postgres.audit_store import record
from shared.postgres.engine import transaction
from shared.postgres.store import Store
from shared.postgres.tables import ModelPauseRow, PastPauseRow, WorkerRow


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker. `alive`: its lease has not expired; rows of others are kept for an hour.

    `waiting`: requests that its engine has accepted but not started. `engine_info`: None until its engine has started.
    See `shared.domain.job.WorkerReport`.
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
    engine_info: EngineInfo | None
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
    values = {name: getattr(row, name) for name in WorkerInfo.__dataclass_fields__}
    return WorkerInfo(**{**values, "engine_info": EngineInfo.read(row.engine_info)})


class FleetStore(Store):
    """Workers and pauses. Changes are recorded in the audit log as those of the key `by`; None: the command line's."""

    async def workers(self) -> list[WorkerInfo]:
        """Return all workers, by model; dead ones too, for an hour."""
        return await self._all(workers_statement(), to_worker)

    async def worker(self, worker_id: str) -> WorkerInfo | None:
        """Return a worker."""
        return await self._one(select(*_COLUMNS).where(WorkerRow.id == worker_id), to_worker)

    async def live_workers(self, model: str) -> list[str]:
        """Return the ids of a model's live workers."""
        return await self._all(select(WorkerRow.id).where(WorkerRow.model == model, _ALIVE), lambda row: str(row.id))

    async def request_drain(self, worker_id: str, *, by: int | None = None) -> bool:
        """Order a worker to finish its jobs and stop. False: it is not alive."""
        async with transaction(self._engine) as connection:
            alive = select(WorkerRow.drain_requested_at).where(WorkerRow.id == worker_id, _ALIVE).with_for_update()
            row = (await connection.execute(alive)).first()
            if row is None:
                return False
            if row.drain_requested_at is None:
                statement = update(WorkerRow).where(WorkerRow.id == worker_id)
                statement = statement.values(drain_requested_at=func.clock_timestamp())
                (at,) = (await connection.execute(statement.returning(WorkerRow.drain_requested_at))).one()
                after = {"drain_requested_at": at}
                await record(connection, key_id=by, action="worker.drain", object_id=worker_id, after=after)
            return True

    async def pauses(self) -> dict[str, datetime]:
        """Return the paused models, and since when they are."""
        rows = await self._all(select(ModelPauseRow), lambda row: (str(row.model), row.paused_at))
        return dict(rows)

    async def pause(self, models: Sequence[str], key_id: int) -> None:
        """Pause the queue of these models: claims that begin after this has returned find none of their jobs."""
        statement = insert(ModelPauseRow).values([{"model": model, "key_id": key_id} for model in models])
        statement = statement.on_conflict_do_nothing(index_elements=[ModelPauseRow.model])
        async with transaction(self._engine) as connection:
            paused = await connection.execute(statement.returning(ModelPauseRow.model, ModelPauseRow.paused_at))
            for row in paused:
                after = {"paused_at": row.paused_at}
                await record(connection, key_id=key_id, action="model.pause", object_id=row.model, after=after)

    async def resume(self, models: Sequence[str], *, by: int | None = None) -> None:
        """Resume the queue of these models, and remember the pause for the statistics of their jobs."""
        deleted = delete(ModelPauseRow).where(ModelPauseRow.model.in_(models))
        ended = deleted.returning(ModelPauseRow.model, ModelPauseRow.paused_at).cte("ended")
        past = select(ended.c.model, func.clock_timestamp(), ended.c.paused_at)
        columns = [PastPauseRow.model, PastPauseRow.resumed_at, PastPauseRow.paused_at]
        statement = insert(PastPauseRow).from_select(columns, past)
        async with transaction(self._engine) as connection:
            resumed = await connection.execute(statement.returning(PastPauseRow.model, PastPauseRow.paused_at))
            for row in resumed:
                before, after = {"paused_at": row.paused_at}, {"paused_at": None}
                await record(
                    connection, key_id=by, action="model.resume", object_id=row.model, before=before, after=after
                )
