"""SQL about responses. `shared.postgres.new_jobs` inserts their rows together with their jobs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Text, cast, select

from shared.domain.response import ResponseFacts, StoredResponse
from shared.postgres.job_rows import SUMMARY_COLUMNS, to_summary
from shared.postgres.store import Store
from shared.postgres.tables import JobRow, ResponseRow
from shared.runtime import chunked_json
from shared.runtime.offload import off_loop


class ResponseStore(Store):
    """Responses in PostgreSQL. JSON that may be large is read as text, which the driver does not parse."""

    async def get(self, job_id: str, project_id: int, *, unstored: bool = False) -> StoredResponse | None:
        """Return a project's response by its job's id; with `unstored`, also one with `store` false."""
        columns = (
            *SUMMARY_COLUMNS,
            cast(ResponseRow.asked, Text).label("asked"),
            ResponseRow.previous_id,
            ResponseRow.background,
            ResponseRow.stored,
        )
        statement = _query(columns, job_id, project_id)
        if not unstored:
            statement = statement.where(ResponseRow.stored)
        row = await self._first(statement)
        if row is None:
            return None
        request_params: dict[str, Any] = await off_loop(len(row.asked), chunked_json.loads, row.asked)
        facts = ResponseFacts(request_params, [], row.previous_id, row.background, row.stored)
        return StoredResponse(to_summary(row), facts)

    async def input(self, job_id: str, project_id: int) -> list[dict[str, Any]] | None:
        """Return the input items of a project's response by its job's id."""
        columns = (cast(ResponseRow.input, Text).label("input"),)
        row = await self._first(_query(columns, job_id, project_id).where(ResponseRow.stored))
        if row is None:
            return None
        items: list[dict[str, Any]] = await off_loop(len(row.input), chunked_json.loads, row.input)
        return items


def _query(columns: tuple[Any, ...], job_id: str, project_id: int) -> Any:
    return (
        select(*columns)
        .select_from(JobRow)
        .join(ResponseRow, ResponseRow.job_id == JobRow.id)
        .where(JobRow.id == job_id, JobRow.project_id == project_id, JobRow.deleted_at.is_(None))
    )
