"""SQL about responses. `shared.postgres.job_store` inserts their rows together with their jobs."""

from __future__ import annotations

from sqlalchemy import select

from shared.domain.response import ResponseFacts, StoredResponse
from shared.postgres.job_statements import COLUMNS, to_job
from shared.postgres.store import Store
from shared.postgres.tables import JobRow, ResponseRow


class ResponseStore(Store):
    """Responses in PostgreSQL."""

    async def get(self, job_id: str, project_id: int, *, unstored: bool = False) -> StoredResponse | None:
        """Return a project's response by its job's id; with `unstored`, also one with `store` false."""
        statement = (
            select(
                *COLUMNS,
                ResponseRow.asked,
                ResponseRow.input,
                ResponseRow.previous_id,
                ResponseRow.background,
                ResponseRow.stored,
            )
            .join(ResponseRow, ResponseRow.job_id == JobRow.id)
            .where(JobRow.id == job_id, JobRow.project_id == project_id, JobRow.deleted_at.is_(None))
        )
        if not unstored:
            statement = statement.where(ResponseRow.stored)
        row = await self._first(statement)
        if row is None:
            return None
        facts = ResponseFacts(row.asked, row.input, row.previous_id, row.background, row.stored)
        return StoredResponse(to_job(row), facts)
