"""SQL of retention. Statements are limited in size and safe to run in several processes."""

from __future__ import annotations

from sqlalchemy import delete, exists, func, select, tuple_

from shared.domain.job import TERMINAL
from shared.postgres.job_statements import purge_statement
from shared.postgres.store import Store, seconds
from shared.postgres.tables import BatchRow, CachedAnswerRow, JobRow, ResponseRow, SummaryRow


class RetentionStore(Store):
    """Deletes and purges ended jobs, and summaries of conversations."""

    async def delete_ended(self, older_than_s: float, limit: int) -> int:
        """Delete jobs that ended more than `older_than_s` ago, with their responses and their entries in the response
        cache. Returns their number.

        The jobs of an unfinished batch are kept, because its result files are written from them.
        """
        unfinished = exists().where(BatchRow.id == JobRow.batch_id, BatchRow.ended_at.is_(None))
        old = (
            select(JobRow.id)
            .where(JobRow.finished_at < func.now() - seconds(older_than_s), ~unfinished)
            .order_by(JobRow.finished_at)
            .limit(limit)
            .with_for_update(skip_locked=True, of=JobRow)
            .scalar_subquery()
        )
        deleted = delete(JobRow).where(JobRow.id.in_(old)).returning(JobRow.id).cte("deleted")
        entries = delete(CachedAnswerRow).where(CachedAnswerRow.job_id.in_(select(deleted.c.id)))
        statement = select(func.count()).select_from(deleted).add_cte(entries.cte("entries"))
        async with self._engine.connect() as connection:
            return int((await connection.execute(statement)).scalar_one())

    async def delete_unused_summaries(self, older_than_s: float, limit: int) -> int:
        """Delete summaries of conversations that were last used more than `older_than_s` ago. Returns their number."""
        key = (SummaryRow.project_id, SummaryRow.model, SummaryRow.sha256)
        old = (
            select(*key)
            .where(SummaryRow.used_at < func.now() - seconds(older_than_s))
            .order_by(SummaryRow.used_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        async with self._engine.connect() as connection:
            return (await connection.execute(delete(SummaryRow).where(tuple_(*key).in_(old)))).rowcount

    async def purge_unstored(self, older_than_s: float, limit: int) -> int:
        """Purge input and output of responses with `store` false that ended more than `older_than_s` ago.

        Returns their number.
        """
        old = (
            select(ResponseRow.job_id)
            .join(JobRow, JobRow.id == ResponseRow.job_id)
            .where(
                ~ResponseRow.stored,
                JobRow.status.in_(TERMINAL),
                JobRow.finished_at < func.now() - seconds(older_than_s),
            )
            .limit(limit)
            .with_for_update(skip_locked=True, of=JobRow)
            .scalar_subquery()
        )
        async with self._engine.connect() as connection:
            return len((await connection.execute(purge_statement(JobRow.id.in_(old)))).all())
