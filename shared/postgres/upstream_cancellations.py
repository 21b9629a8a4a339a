"""SQL for the upstream's requests that are to be cancelled, because their jobs have ended or start again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson
from sqlalchemy import Text, bindparam, delete, func, insert, literal_column, select, update

from shared.domain.events import UpstreamState
from shared.postgres.prepared import Prepared
from shared.postgres.store import Store, seconds
from shared.postgres.tables import UpstreamCancellationRow

logger = logging.getLogger(__name__)

# A request whose cancellation was begun is due again after this time, doubled at each try.
RETRY_S = (15.0, 900.0)


@dataclass(frozen=True, slots=True)
class Cancellation:
    """A request of an upstream that is to be cancelled, and the job that it was sent for."""

    id: int
    job_id: str
    model: str
    state: UpstreamState


@lru_cache(maxsize=16)
def _due(limit: int, *, of_job: bool) -> Prepared:
    row = UpstreamCancellationRow
    # An index can be searched for `now()`, but not for `clock_timestamp()`, which changes during the search. The
    # limit is a literal, so that a generic plan does not expect a tenth of all rows.
    due = select(row.id).where(row.model == bindparam("model", type_=Text), row.due_at <= func.now())
    due = due.order_by(row.due_at).limit(literal_column(str(limit)))
    if of_job:
        due = due.where(row.job_id == bindparam("job", type_=Text))
    first, longest = RETRY_S
    return Prepared(
        update(row)
        .where(row.id.in_(due.with_for_update(skip_locked=True)))
        .values(
            {
                row.tries: row.tries + 1,
                row.due_at: func.clock_timestamp()
                + seconds(func.least(longest, first * func.power(2.0, func.least(row.tries, 10)))),
            }
        )
        .returning(row.id, row.job_id, row.model, row.state)
    )


class UpstreamCancellations(Store):
    """The requests that workers of their model are to cancel. Those of jobs that end are added by `end_statement`."""

    async def add(self, job_id: str, model: str, state: UpstreamState) -> None:
        """Add the request of a job that starts again. The job's log must say so already, so that no attempt resumes
        the request."""
        if (payload := stored_state(job_id, state)) is not None:
            values = {"job_id": job_id, "model": model, "state": payload}
            await self._changes(insert(UpstreamCancellationRow).values(values))

    async def due(self, model: str, limit: int, *, job_id: str | None = None) -> list[Cancellation]:
        """Return requests of a model that nobody else is cancelling; those that are not removed are due again later.

        `job_id`: only those of this job.
        """
        parameters = {"model": model} | ({} if job_id is None else {"job": job_id})
        rows = await _due(limit, of_job=job_id is not None).run(self._engine, parameters)
        return [_cancellation(row) for row in rows]

    async def remove(self, ids: Sequence[int]) -> None:
        """Remove requests that were cancelled."""
        if ids:
            await self._changes(delete(UpstreamCancellationRow).where(UpstreamCancellationRow.id.in_(ids)))

    async def abandon(self, older_than_s: float) -> list[Cancellation]:
        """Remove the requests that could not be cancelled for so long, and return them."""
        row = UpstreamCancellationRow
        statement = (
            delete(row)
            .where(row.created_at < func.now() - seconds(older_than_s))
            .returning(row.id, row.job_id, row.model, row.state)
        )
        return await self._all(statement, _cancellation)


def stored_state(job_id: str, state: UpstreamState) -> dict[str, Any] | None:
    """The value of a `jsonb` column for a request; None, with a warning, if that refuses it.

    It must not keep a job from ending: no upstream has such ids, and one that was changed would cancel nothing.
    """
    payload = state.payload()
    try:
        if b"\\u0000" not in orjson.dumps(payload):
            return payload
    except orjson.JSONEncodeError:  # lone surrogates
        pass
    logger.warning("job=%s the upstream's request cannot be cancelled: its id is not a text", job_id)
    return None


def _cancellation(row: Any) -> Cancellation:
    return Cancellation(row.id, row.job_id, row.model, UpstreamState(row.state["id"], row.state["data"]))
