"""Summaries in PostgreSQL: by project, model and the digest of what they replace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ARRAY, LargeBinary, bindparam, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from shared.postgres.engine import transaction
from shared.postgres.job_purge import purge_jobs, purge_statement
from shared.postgres.store import Store, seconds
from shared.postgres.summary_deletion import was_deleted
from shared.postgres.tables import JobRow, SummaryRow

# How exactly it is known when a summary was last used: reading it writes its row at most this often.
USE_INTERVAL_S = 3600.0

_COLUMNS = (SummaryRow.sha256, SummaryRow.summary, SummaryRow.job_id, SummaryRow.conversation)


@dataclass(frozen=True, slots=True)
class StoredSummary:
    """A summary, and the job that wrote it. `conversation` identifies the summaries that were made of each other."""

    sha256: bytes
    text: str
    job_id: str
    conversation: str


class SummaryStore(Store):
    """Summaries of conversations."""

    async def find(self, project_id: int, model: str, digests: Sequence[bytes]) -> dict[bytes, StoredSummary]:
        """Return the summaries by a model that have one of these digests."""
        wanted = (
            SummaryRow.project_id == project_id,
            SummaryRow.model == model,
            SummaryRow.sha256 == func.any(bindparam("digests", list(digests), type_=ARRAY(LargeBinary))),
        )
        used = (
            update(SummaryRow)
            .where(*wanted, SummaryRow.used_at < func.now() - seconds(USE_INTERVAL_S))
            .values({SummaryRow.used_at: func.now()})
            .returning(SummaryRow.sha256)
            .cte("used")
        )
        statement = select(*_COLUMNS).where(*wanted).add_cte(used)
        async with self._engine.connect() as connection:
            return {row.sha256: StoredSummary(*row) for row in await connection.execute(statement)}

    async def put(
        self, project_id: int, model: str, summary: StoredSummary, *, messages: int, extends: StoredSummary | None
    ) -> StoredSummary | None:
        """Store the summary of a number of messages. Returns the one that is stored.

        If another process has stored one at the same time, or the conversation was deleted (None), the input and output
        of the summary's job are deleted.
        """
        async with transaction(self._engine) as connection:
            if await was_deleted(connection, _writers(summary.job_id, extends)):
                await purge_jobs(connection, purge_statement(JobRow.id == summary.job_id))
                return None
            values = {
                "project_id": project_id,
                "model": model,
                "sha256": summary.sha256,
                "messages": messages,
                "summary": summary.text,
                "job_id": summary.job_id,
                "conversation": summary.conversation,
            }
            statement = (
                upsert(SummaryRow)
                .values(values)
                .on_conflict_do_update(
                    index_elements=[SummaryRow.project_id, SummaryRow.model, SummaryRow.sha256],
                    set_={"used_at": func.now()},
                )
                .returning(*_COLUMNS)
            )
            stored = StoredSummary(*(await connection.execute(statement)).one())
            if stored.job_id != summary.job_id:
                await purge_jobs(connection, purge_statement(JobRow.id == summary.job_id))
            return stored

    async def discard(self, job_id: str, *, extends: StoredSummary | None) -> None:
        """Delete the input and output of a job that has written no summary, if its conversation was deleted."""
        async with transaction(self._engine) as connection:
            if await was_deleted(connection, _writers(job_id, extends)):
                await purge_jobs(connection, purge_statement(JobRow.id == job_id))


def _writers(job_id: str, extends: StoredSummary | None) -> list[str]:
    """The jobs that are deleted with the conversation: one that began after that is not, only the one before it."""
    return [job_id, *([extends.job_id] if extends is not None else [])]
