"""The request log in a test's database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine


async def log_rows(database: AsyncEngine, job_id: str | None = None) -> list[Row[Any]]:
    """The rows of a job, or of all, in the order of jobs."""
    query = text("SELECT * FROM request_log WHERE job_id = :id OR CAST(:id AS text) IS NULL ORDER BY job_id")
    async with database.connect() as connection:
        return list(await connection.execute(query, {"id": job_id}))


async def body_rows(database: AsyncEngine) -> list[Row[Any]]:
    """All bodies, encrypted, in the order of jobs."""
    async with database.connect() as connection:
        return list(await connection.execute(text("SELECT * FROM request_bodies ORDER BY job_id")))


def check_logged(job: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Check that an ended job has exactly one row, with what its own row says, and an open one has none."""
    if job.finished_at is None:
        assert list(rows) == []
        return
    (row,) = rows
    names = ("project_id", "key_id", "end_user", "batch_id", "kind", "model", "status", "error_code", "request_id")
    assert {name: row[name] for name in names} == {name: getattr(job, name) for name in names}
    assert row["requested_model"] == (job.requested_model or job.model)
    usage = job.usage or {}
    assert (row["input_tokens"], row["output_tokens"]) == (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    assert (row["level"], row["body"]) == ("metadata", "none")
