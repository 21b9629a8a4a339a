"""Summaries in PostgreSQL: by project, model and the digest of what they replace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ARRAY, LargeBinary, bindparam, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from shared.postgres.store import Store, seconds
from shared.postgres.tables import SummaryRow

# How exactly it is known when a summary was last used: reading it writes its row at most this often.
USE_INTERVAL_S = 3600.0


@dataclass(frozen=True, slots=True)
class StoredSummary:
    """A summary, and the job that wrote it."""

    sha256: bytes
    text: str
    job_id: str


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
        statement = select(SummaryRow.sha256, SummaryRow.summary, SummaryRow.job_id).where(*wanted).add_cte(used)
        async with self._engine.connect() as connection:
            rows = await connection.execute(statement)
            return {row.sha256: StoredSummary(row.sha256, row.summary, row.job_id) for row in rows}

    async def put(self, project_id: int, model: str, summary: StoredSummary, *, messages: int) -> None:
        """Store the summary of a number of messages. Another process may have stored one at the same time."""
        values = {
            "project_id": project_id,
            "model": model,
            "sha256": summary.sha256,
            "messages": messages,
            "summary": summary.text,
            "job_id": summary.job_id,
        }
        async with self._engine.connect() as connection:
            await connection.execute(upsert(SummaryRow).values(values).on_conflict_do_nothing())
