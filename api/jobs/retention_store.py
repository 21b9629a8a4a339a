"""SQL of retention. Statements are limited in size and safe to run in several processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Double,
    Integer,
    ScalarSelect,
    Text,
    and_,
    bindparam,
    delete,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY

from shared.domain.job import TERMINAL
from shared.postgres.engine import transaction
from shared.postgres.job_purge import (
    IS_UNSHARED,
    MAY_BE_SHARED,
    delete_entries,
    purge_jobs,
    purge_statement,
    release_statement,
)
from shared.postgres.prepared import Prepared
from shared.postgres.store import Store, seconds
from shared.postgres.summary_deletion import WAS_DISCARDED
from shared.postgres.tables import BatchRow, JobRow, ResponseRow, SummaryRow

_LIMIT = bindparam("limit", type_=Integer)
_LONG_AGO = func.now() - seconds(bindparam("older_than_s", type_=Double))


def _ended() -> Prepared:
    unfinished = exists().where(BatchRow.id == JobRow.batch_id, BatchRow.ended_at.is_(None))
    is_kept = and_(JobRow.deleted_at.is_not(None), JobRow.log.is_not(None), ~IS_UNSHARED)
    return Prepared(
        select(JobRow.id, and_(MAY_BE_SHARED, JobRow.deleted_at.is_(None)).label("may_be_shared"))
        .where(JobRow.finished_at < _LONG_AGO, ~unfinished, ~is_kept)
        .order_by(JobRow.finished_at)
        .limit(_LIMIT)
    )


def _purge_discarded() -> Any:
    discarded = (
        select(JobRow.id)
        .where(WAS_DISCARDED, JobRow.deleted_at.is_(None), JobRow.status.in_(TERMINAL))
        .limit(_LIMIT)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    return purge_statement(JobRow.id.in_(discarded))


def _release_answers() -> Prepared:
    kept = (
        select(JobRow.id)
        .where(JobRow.deleted_at.is_not(None), JobRow.log.is_not(None), IS_UNSHARED)
        .limit(_LIMIT)
        .with_for_update(skip_locked=True, of=JobRow)
        .scalar_subquery()
    )
    return Prepared(release_statement(JobRow.id.in_(kept)).returning(JobRow.id))


def _delete_unused_summaries() -> Prepared:
    key = (SummaryRow.project_id, SummaryRow.model, SummaryRow.sha256)
    old = (
        select(*key)
        .where(SummaryRow.used_at < _LONG_AGO)
        .order_by(SummaryRow.used_at)
        .limit(_LIMIT)
        .with_for_update(skip_locked=True)
    )
    return Prepared(delete(SummaryRow).where(tuple_(*key).in_(old)).returning(SummaryRow.sha256))


def _unlogged() -> Prepared:
    # The results of a batch are written from its jobs.
    unfinished = exists().where(
        BatchRow.id == JobRow.batch_id, or_(BatchRow.ended_at.is_(None), BatchRow.ended_at >= _LONG_AGO)
    )
    unlogged = select(JobRow.id).where(
        JobRow.log_level == literal_column("'none'"),
        JobRow.finished_at < _LONG_AGO,
        JobRow.deleted_at.is_(None),
        or_(JobRow.batch_id.is_(None), ~unfinished),
    )
    # Responses of earlier versions, whose jobs have no level.
    unstored = (
        select(JobRow.id)
        .join(ResponseRow, ResponseRow.job_id == JobRow.id)
        .where(
            ~ResponseRow.stored,
            JobRow.log_level.is_(None),
            JobRow.status.in_(TERMINAL),
            JobRow.finished_at < _LONG_AGO,
        )
    )
    return Prepared(select(union_all(unlogged, unstored).subquery("unlogged").c.id).limit(_LIMIT))


_ENDED = _ended()
_PURGE_DISCARDED = _purge_discarded()
_RELEASE_ANSWERS = _release_answers()
_DELETE_UNUSED_SUMMARIES = _delete_unused_summaries()
_UNLOGGED = _unlogged()


class RetentionStore(Store):
    """Deletes and purges ended jobs, and summaries of conversations."""

    async def delete_ended(self, older_than_s: float, limit: int) -> int:
        """Delete jobs that ended more than `older_than_s` ago, with their responses and their entries in the response
        cache. Returns the number of those that it has deleted or purged, at most `limit`. Their bodies in the request
        log remain until the retention of that.

        The jobs of an unfinished batch are kept, because its result files are written from them. A job whose answer the
        response cache may have given to others is purged first, so that no more get it, and deleted after those.
        """
        due = await _ENDED.run(self._engine, {"older_than_s": older_than_s, "limit": limit})
        if not due:
            return 0
        async with self._engine.connect() as connection:
            shared = self._locked(row.id for row in due if row.may_be_shared)
            purged = (await connection.execute(purge_statement(JobRow.id.in_(shared)))).scalars().all()
            unshared = self._locked(
                (row.id for row in due), or_(~MAY_BE_SHARED, and_(JobRow.deleted_at.is_not(None), IS_UNSHARED))
            )
            deleted = delete(JobRow).where(JobRow.id.in_(unshared)).returning(JobRow.id).cte("deleted")
            statement = select(deleted.c.id).add_cte(delete_entries(deleted).cte("entries"))
            return len({*purged, *(await connection.execute(statement)).scalars()})

    async def purge_discarded(self, limit: int) -> int:
        """Purge the jobs of summaries that were deleted while they ran. Returns their number."""
        async with transaction(self._engine) as connection:
            return len(await purge_jobs(connection, _PURGE_DISCARDED, {"limit": limit}))

    @staticmethod
    def _locked(job_ids: Iterable[str], *conditions: ColumnElement[bool]) -> ScalarSelect[str]:
        """Lock those of these jobs for which the conditions hold, without those that others have locked."""
        ids = JobRow.id == func.any(literal([*job_ids], ARRAY(Text)))
        return select(JobRow.id).where(ids, *conditions).with_for_update(skip_locked=True, of=JobRow).scalar_subquery()

    async def release_answers(self, limit: int) -> int:
        """Delete output and log of deleted jobs whose answers no other jobs have any more. Returns their number."""
        return len(await _RELEASE_ANSWERS.run(self._engine, {"limit": limit}))

    async def delete_unused_summaries(self, older_than_s: float, limit: int) -> int:
        """Delete summaries of conversations that were last used more than `older_than_s` ago. Returns their number."""
        parameters = {"older_than_s": older_than_s, "limit": limit}
        return len(await _DELETE_UNUSED_SUMMARIES.run(self._engine, parameters))

    async def unlogged(self, older_than_s: float, limit: int) -> list[str]:
        """The jobs of which nothing is to be kept, and that ended more than `older_than_s` ago, or whose batch did."""
        rows = await _UNLOGGED.run(self._engine, {"older_than_s": older_than_s, "limit": limit})
        return [row.id for row in rows]

    async def purge(self, job_ids: Sequence[str]) -> int:
        """Purge ended jobs, without those that others have locked. Returns the number of those that were purged."""
        async with self._engine.connect() as connection:
            statement = purge_statement(JobRow.id.in_(self._locked(job_ids)))
            return len((await connection.execute(statement)).all())
