"""SQL about batches. As for jobs, every state change is a single guarded transaction.

Any process can run a batch's next step. `claim` leases the batch to one of them, which avoids duplicate work but is not
required for correctness: if two processes run the same step, the guard of the second finds that the row has changed.
No line runs twice, because the position of the next line is committed together with the jobs of the lines before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Update, func, insert, select, update

from api.batches.batch import Batch, BatchStatus, BatchUsage, LineError, Position, new_batch_id
from api.batches.line_jobs import (
    BatchJob,
    LineResult,
    NoRoom,
    SubmittedLines,
    insert_jobs,
    job_records,
    results_statement,
)
from api.batches.rows import CLAIM, COLUMNS, Tally, tally_query, to_batch
from api.files.store import Purpose, insert_file, not_expired
from shared.domain.job import JobSummary
from shared.domain.owner import Owner
from shared.domain.request_webhook import RequestWebhook
from shared.domain.webhook_events import EventType
from shared.postgres.engine import limit_idle, transaction
from shared.postgres.job_row_store import JobRowStore
from shared.postgres.job_rows import SUMMARY_COLUMNS, read_job
from shared.postgres.store import seconds
from shared.postgres.tables import BatchRow, FileRow, JobRow
from shared.postgres.webhook_outbox import insert_event


@dataclass(frozen=True, slots=True)
class ResultFile:
    """A result file whose blob is complete."""

    id: str
    filename: str
    bytes: int


class BatchStore(JobRowStore):
    """Batches in PostgreSQL."""

    async def insert(
        self,
        owner: Owner,
        endpoint: str,
        input_file_id: str,
        completion_window: str,
        window_s: float,
        metadata: dict[str, str] | None,
        output_expires_after_s: int | None = None,
        webhook: RequestWebhook | None = None,
    ) -> Batch | None:
        """Commit a new batch in state `validating`. Returns None if the file does not exist."""
        values: dict[Any, Any] = {
            BatchRow.id: new_batch_id(self._region),
            BatchRow.project_id: owner.project_id,
            BatchRow.key_id: owner.key_id,
            BatchRow.endpoint: endpoint,
            BatchRow.input_file_id: input_file_id,
            BatchRow.completion_window: completion_window,
            BatchRow.batch_metadata: metadata,
            BatchRow.output_expires_after_s: output_expires_after_s,
            BatchRow.webhook: None if webhook is None else webhook.stored(),
            BatchRow.status: BatchStatus.VALIDATING.value,
            BatchRow.expires_at: func.now() + seconds(window_s),
        }
        async with transaction(self._engine) as connection:
            # Locks the file until the batch is committed, so that a concurrent delete sees the batch.
            file = select(FileRow.id).where(
                FileRow.id == input_file_id, FileRow.project_id == owner.project_id, not_expired()
            )
            if (await connection.execute(file.with_for_update(read=True))).first() is None:
                return None
            return to_batch((await connection.execute(insert(BatchRow).values(values).returning(*COLUMNS))).one())

    async def get(self, batch_id: str, project_id: int) -> Batch | None:
        """Return a batch of a project; None if there is none."""
        statement = select(*COLUMNS).where(BatchRow.id == batch_id, BatchRow.project_id == project_id)
        return await self._one(statement, to_batch)

    async def page(self, project_id: int, *, limit: int, after: str | None) -> list[Batch]:
        """Return a project's batches that are older than `after`, newest first."""
        statement = select(*COLUMNS).where(BatchRow.project_id == project_id)
        return await self._page(statement, BatchRow.id, to_batch, limit=limit, after=after)

    async def cancel(self, batch_id: str) -> bool:
        """Move a batch to `cancelling`: no more lines are submitted. Returns False if its state does not allow it."""
        return await self._move(
            batch_id,
            (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS),
            BatchStatus.CANCELLING,
            {
                BatchRow.ending: BatchStatus.CANCELLED.value,
                BatchRow.cancelling_at: func.clock_timestamp(),
                BatchRow.due_at: func.clock_timestamp(),
            },
        )

    # Leases

    async def claim(self, driver: str, lease_s: float) -> Batch | None:
        """Lease a batch that is due to this driver. Returns None if none is due."""
        rows = await CLAIM.run(self._engine, {"new_driver": driver, "lease_s": lease_s})
        return to_batch(rows[0]) if rows else None

    async def reschedule(self, batch_id: str, driver: str, wait_s: float) -> bool:
        """Make a leased batch due in `wait_s` seconds. Returns False if another driver has leased it."""
        statement = (
            update(BatchRow)
            .where(BatchRow.id == batch_id, BatchRow.driver == driver)
            .values({BatchRow.due_at: func.clock_timestamp() + seconds(wait_s)})
        )
        return await self._changes(statement)

    # Steps. Each returns False, or None, if the batch is no longer in the expected state.

    async def begin(self, batch_id: str, total: int) -> bool:
        """Start a batch whose input is valid and has `total` requests."""
        return await self._move(
            batch_id,
            (BatchStatus.VALIDATING,),
            BatchStatus.IN_PROGRESS,
            {BatchRow.total: total, BatchRow.in_progress_at: func.clock_timestamp()},
        )

    async def fail(self, batch: Batch, errors: Sequence[LineError]) -> bool:
        """Fail a batch whose input is invalid or missing."""
        statement = _move_statement(
            batch.id,
            (batch.status,),
            BatchStatus.FAILED,
            {BatchRow.errors: [asdict(error) for error in errors], BatchRow.ended_at: func.clock_timestamp()},
        )
        async with transaction(self._engine) as connection:
            failed = (await connection.execute(statement.returning(BatchRow.webhook))).first()
            if failed is None:
                return False
            await insert_event(connection, batch.project_id, EventType.BATCH_FAILED, batch.id, webhook=failed.webhook)
        return True

    async def submit(
        self, batch: Batch, jobs: Sequence[BatchJob], requests: int, next_line: Position
    ) -> SubmittedLines | NoRoom | None:
        """Commit the jobs of the next `requests` lines, and the position of the line after them.

        Those that the response cache has an answer for are committed as completed. Returns None, and writes nothing, if
        another driver was faster or the batch has been cancelled or has expired; and `NoRoom` if budgets have no room
        for all jobs.
        """
        advance = (
            update(BatchRow)
            .where(
                BatchRow.id == batch.id,
                BatchRow.status == BatchStatus.IN_PROGRESS.value,
                BatchRow.next_line == batch.next.line,
                BatchRow.expires_at > func.clock_timestamp(),
            )
            .values(
                {
                    BatchRow.next_line: next_line.line,
                    BatchRow.next_offset: next_line.offset,
                    BatchRow.submitted: BatchRow.submitted + requests,
                }
            )
            .returning(limit_idle())  # others wait for the windows of budgets and the keys of the response cache
        )
        records = await job_records(batch, jobs, self._region)
        async with transaction(self._engine) as connection:
            if (await connection.execute(advance)).first() is None:
                return None
            submitted = await insert_jobs(connection, batch, jobs, records)
            if isinstance(submitted, NoRoom):
                await connection.rollback()
            return submitted

    async def tally(self, batch_id: str) -> Tally | None:
        """Count a batch's jobs, and store the counts. Returns None if it has ended or on a concurrent update."""
        query = tally_query(batch_id).cte("tally")
        completed = BatchRow.settled_completed + query.c.completed
        failed = BatchRow.settled_failed + query.c.failed
        statement = (
            update(BatchRow)
            .where(
                BatchRow.id == batch_id,
                BatchRow.ended_at.is_(None),
                # Jobs that another driver has settled in the meantime must not be counted twice.
                BatchRow.settled_line == query.c.since,
            )
            .values(
                {
                    BatchRow.completed: completed,
                    BatchRow.failed: failed,
                    BatchRow.settled_completed: BatchRow.settled_completed + query.c.settled_completed,
                    BatchRow.settled_failed: BatchRow.settled_failed + query.c.settled_failed,
                    BatchRow.settled_line: func.coalesce(query.c.first_open, BatchRow.settled_line),
                }
            )
            .returning(query.c.open, BatchRow.completed, BatchRow.failed)
        )
        return await self._one(statement, lambda row: Tally(row.open, row.completed, row.failed))

    async def finalize(self, batch_id: str, ending: BatchStatus) -> bool:
        """Stop submitting lines; the results are written once all jobs have ended."""
        return await self._move(
            batch_id,
            (BatchStatus.IN_PROGRESS,),
            BatchStatus.FINALIZING,
            {BatchRow.ending: ending.value, BatchRow.finalizing_at: func.clock_timestamp()},
        )

    async def end(
        self,
        batch: Batch,
        ending: BatchStatus,
        *,
        output: ResultFile | None,
        errors: ResultFile | None,
        completed: int,
        failed: int,
        usage: BatchUsage,
        retention_s: float | None = None,
    ) -> bool:
        """End a batch, and insert its result files, to be retained for `retention_s` seconds (None: unlimited).

        Returns False, and writes nothing, if another driver was faster.
        """
        values = {
            BatchRow.status: ending.value,
            BatchRow.output_file_id: output.id if output else None,
            BatchRow.error_file_id: errors.id if errors else None,
            BatchRow.completed: completed,
            BatchRow.failed: failed,
            BatchRow.usage: asdict(usage),
            BatchRow.ended_at: func.clock_timestamp(),
        }
        statement = (
            update(BatchRow)
            .where(
                BatchRow.id == batch.id,
                BatchRow.status.in_((BatchStatus.FINALIZING.value, BatchStatus.CANCELLING.value)),
            )
            .values(values)
            .returning(BatchRow.webhook)
        )
        async with transaction(self._engine) as connection:
            ended = (await connection.execute(statement)).first()
            if ended is None:
                return False
            for file in filter(None, (output, errors)):
                await insert_file(
                    connection,
                    file.id,
                    Owner(batch.project_id, batch.key_id),
                    Purpose.BATCH_OUTPUT,
                    file.filename,
                    file.bytes,
                    retention_s,
                )
            event_type = EventType(f"batch.{ending.value}")
            await insert_event(connection, batch.project_id, event_type, batch.id, webhook=ended.webhook)
        return True

    # Jobs of a batch

    async def jobs(self, batch_id: str, after_line: int, limit: int, *, log: bool = False) -> list[LineResult]:
        """Return the jobs of the next lines after `after_line`, in order: at least one, and fewer if they are large."""
        rows = await self._all(results_statement(batch_id, after_line, limit, log=log), lambda row: row)
        return [LineResult(row.batch_line, await read_job(row), row.log) for row in rows]

    async def open_jobs(self, batch_id: str) -> list[JobSummary]:
        """Return the jobs that have not ended."""
        statement = select(*SUMMARY_COLUMNS).where(JobRow.batch_id == batch_id, JobRow.finished_at.is_(None))
        return await self._summaries(statement)

    async def _move(
        self, batch_id: str, sources: Sequence[BatchStatus], target: BatchStatus, values: dict[Any, Any]
    ) -> bool:
        return await self._changes(_move_statement(batch_id, sources, target, values))


def _move_statement(
    batch_id: str, sources: Sequence[BatchStatus], target: BatchStatus, values: dict[Any, Any]
) -> Update:
    """Move a batch to another status, if it has one of the `sources`."""
    guard: ColumnElement[bool] = BatchRow.status.in_([status.value for status in sources])
    return update(BatchRow).where(BatchRow.id == batch_id, guard).values({BatchRow.status: target.value, **values})
