"""SQL of retention. Statements are limited in size and safe to run in several processes."""

from __future__ import annotations

from sqlalchemy import and_, delete, exists, func, or_, select, tuple_

from shared.domain.job import TERMINAL
from shared.postgres.job_statements import (
    IS_UNSHARED,
    MAY_BE_SHARED,
    delete_entries,
    purge_statement,
    release_statement,
)
from shared.postgres.store import Store, seconds
from shared.postgres.tables import BatchRow, JobRow, ResponseRow, SummaryRow


class RetentionStore(Store):
    """Deletes and purges ended jobs, and summaries of conversations."""

    async def delete_ended(self, older_than_s: float, limit: int) -> int:
        """Delete jobs that ended more than `older_than_s` ago, with their responses and their entries in the response
        cache. Returns the number of those that it has deleted or purged.

        The jobs of an unfinished batch are kept, because its result files are written from them. A job whose answer the
        response cache may have given to others is purged first, so that no more get it, and deleted after those.
        """
        unfinished = exists().where(BatchRow.id == JobRow.batch_id, BatchRow.ended_at.is_(None))
        old = (
            select(JobRow.id)
            .where(JobRow.finished_at < func.now() - seconds(older_than_s), ~unfinished)
            .order_by(JobRow.finished_at)
            .limit(limit)
            .with_for_update(skip_locked=True, of=JobRow)
        )
        shared = old.where(MAY_BE_SHARED, JobRow.deleted_at.is_(None))
        unshared = old.where(or_(~MAY_BE_SHARED, and_(JobRow.deleted_at.is_not(None), IS_UNSHARED)))
        deleted = delete(JobRow).where(JobRow.id.in_(unshared.scalar_subquery())).returning(JobRow.id).cte("deleted")
        statement = select(func.count()).select_from(deleted).add_cte(delete_entries(deleted).cte("entries"))
        async with self._engine.connect() as connection:
            purged = (await connection.execute(purge_statement(JobRow.id.in_(shared.scalar_subquery())))).all()
            return len(purged) + int((await connection.execute(statement)).scalar_one())

    async def release_answers(self, limit: int) -> int:
        """Delete output and log of deleted jobs whose answers no other jobs have any more. Returns their number."""
        kept = (
            select(JobRow.id)
            .where(JobRow.deleted_at.is_not(None), JobRow.log.is_not(None), IS_UNSHARED)
            .limit(limit)
            .with_for_update(skip_locked=True, of=JobRow)
            .scalar_subquery()
        )
        async with self._engine.connect() as connection:
            return (await connection.execute(release_statement(JobRow.id.in_(kept)))).rowcount

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
