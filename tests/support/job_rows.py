"""Rows of jobs as they are after some time, without running them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.jobs.search_store import JobFilters, JobSearchStore
from shared.domain.ids import new_id
from shared.domain.job import JOB_ID_PREFIX, JobSummary
from shared.domain.owner import Owner
from shared.postgres.store import Store

_COLUMNS = {"metadata": "{}", "request": "{}", "attempts": "[]", "status": "completed", "priority": 3, "attempt": 1}
_JSON = ("metadata", "request", "attempts", "usage", "decisions", "output")


def job_id(created_at: datetime) -> str:
    """An id as it is made at a time."""
    unique = new_id(JOB_ID_PREFIX).removeprefix(JOB_ID_PREFIX)[12:]
    return f"{JOB_ID_PREFIX}{int(created_at.timestamp() * 1000):012x}{unique}"


async def add_job(
    database: AsyncEngine,
    owner: Owner,
    model: str = "m",
    *,
    ended_s_ago: float | None = None,
    first_token_s: float | None = None,
    wait_s: float | None = None,
    took_s: float = 5,
    created_s_ago: float | None = None,
    now: datetime | None = None,
    **columns: Any,
) -> str:
    """Insert a job. `ended_s_ago`: when it ended, `took_s` seconds after its submission; None: it is open.

    `first_token_s` and `wait_s` are seconds from its submission. `columns` are further values of its row.
    """
    now = datetime.now(UTC) if now is None else now
    finished_at = None if ended_s_ago is None else now - timedelta(seconds=ended_s_ago)
    if created_s_ago is not None:
        created_at = now - timedelta(seconds=created_s_ago)
    else:
        created_at = (finished_at or now) - timedelta(seconds=took_s)
    values = {
        **_COLUMNS,
        "id": job_id(created_at),
        "project_id": owner.project_id,
        "key_id": owner.key_id,
        "model": model,
        "created_at": created_at,
        "finished_at": finished_at,
        "started_at": None if wait_s is None else created_at + timedelta(seconds=wait_s),
        "first_token_at": None if first_token_s is None else created_at + timedelta(seconds=first_token_s),
        **columns,
    }
    values |= {name: json.dumps(values[name]) for name in _JSON if not isinstance(values.get(name), str | None)}
    names = ", ".join(values)
    parameters = ", ".join(f"CAST(:{name} AS json)" if name in _JSON else f":{name}" for name in values)
    async with database.connect() as connection:
        await connection.execute(text(f"INSERT INTO jobs ({names}) VALUES ({parameters})"), values)  # noqa: S608
    return str(values["id"])


async def jobs_of(store: Store, project_id: int, *, limit: int = 100, after: str | None = None) -> list[JobSummary]:
    """The jobs of a project in the database of a store, newest first."""
    page = await JobSearchStore(store._engine).search(JobFilters(project_id=project_id), limit=limit, after=after)
    return list(page.jobs)
