"""SQL about batches. As for jobs, every state change is a single guarded transaction.

Any process can run a batch's next step. `claim` leases the batch to one of them, which avoids duplicate work but is not
required for correctness: if two processes run the same step, the guard of the second finds that the row has changed.
No line runs twice, because the position of the next line is committed together with the jobs of the lines before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    Integer,
    LargeBinary,
    Select,
    SmallInteger,
    Text,
    bindparam,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import aliased

from api.batches.batch import Batch, BatchStatus, BatchUsage, LineError, Position, new_batch_id
from api.batches.rows import CLAIM, COLUMNS, Tally, tally_query, to_batch
from api.files.store import Purpose, insert_file, not_expired
from shared.domain.answer_options import NO_REQUEST_OPTIONS, RequestOptions
from shared.domain.budgets import WindowReservation
from shared.domain.decisions import NO_DECISIONS, Decisions
from shared.domain.job import Job, JobSummary, new_job_id
from shared.domain.log_level import LogLevel, level_to_store
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.priorities import BATCH_PRIORITY, Hint
from shared.domain.request import GenerateRequest
from shared.postgres.budgets import RESERVATIONS, Reserving, refusals, reservation_records
from shared.postgres.engine import limit_idle, transaction
from shared.postgres.job_inserts import insert_answered, insert_queued
from shared.postgres.job_row_store import JobRowStore
from shared.postgres.job_rows import CHARGE, LOG, SUMMARY_COLUMNS, read_job, to_summary
from shared.postgres.job_rows import COLUMNS as JOB_COLUMNS
from shared.postgres.store import Records, seconds
from shared.postgres.tables import BatchRow, FileRow, JobRow, Timestamp
from shared.runtime.offload import off_loop

# Bytes of outputs and logs, compressed, that `BatchStore.jobs` reads at once.
PAGE_BYTES = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class BatchJob:
    """The job of a line, before it is stored."""

    line: int
    model: str
    request: GenerateRequest
    metadata: dict[str, str]
    end_user: str | None = None
    requested_model: str | None = None
    decisions: Decisions = NO_DECISIONS
    options: RequestOptions = NO_REQUEST_OPTIONS
    cache_key: bytes | None = None
    reservations: tuple[WindowReservation, ...] = ()
    log_level: LogLevel | None = None

    def new(self, batch: Batch) -> NewJob:
        """The job to admit."""
        owner = Owner(batch.project_id, batch.key_id, self.end_user)
        return NewJob(owner, self.model, BATCH_PRIORITY, self.request, self.metadata, options=self.options)


@dataclass(frozen=True, slots=True)
class SubmittedLines:
    """The jobs that were stored: the ids of all in their order, the hints for those that are queued, and those that the
    response cache answered, with the keys of their answers."""

    ids: Sequence[str]
    hints: Sequence[Hint]
    answered: Sequence[JobSummary]
    keys: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class NoRoom:
    """Nothing was written, because budgets have no room for the job of this line; they have for those before it."""

    line: int


@dataclass(frozen=True, slots=True)
class LineResult:
    """The job of a line. `log` is the archive of its events, if requested."""

    line: int
    job: Job
    log: str | None


@dataclass(frozen=True, slots=True)
class ResultFile:
    """A result file whose blob is complete."""

    id: str
    filename: str
    bytes: int


_NEW = Records(
    "new",
    id=Text,
    project_id=BigInteger,
    model=Text,
    request=JSON,
    prompt_bytes=Integer,
    choices=SmallInteger,
    metadata=JSON,
    end_user=Text,
    line=Integer,
    requested_model=Text,
    decisions=JSONB,
    log_level=Text,
    cache_key=LargeBinary,
    max_age_s=Integer,
)
_VALUES = {
    JobRow.project_id: _NEW.project_id,
    JobRow.key_id: bindparam("key", type_=BigInteger),
    JobRow.end_user: _NEW.end_user,
    JobRow.priority: literal(BATCH_PRIORITY),
    JobRow.finish_before: bindparam("expires_at", type_=Timestamp),
    JobRow.batch_id: bindparam("batch", type_=Text),
    JobRow.batch_line: _NEW.line,
    JobRow.prompt_bytes: _NEW.prompt_bytes,
    JobRow.requested_model: _NEW.requested_model,
    JobRow.decisions: _NEW.decisions,
    JobRow.log_level: _NEW.log_level,
}
# A line neither leads nor follows a job with the same request. With a key, its answer is stored in the response cache.
_QUEUED_VALUES: dict[Any, Any] = {**_VALUES, JobRow.entry_key: _NEW.cache_key}
_SUBMIT = insert_queued(_NEW, _QUEUED_VALUES).returning(JobRow.id)


@cache
def _submit_within_budgets() -> Any:
    """As `_SUBMIT`, for jobs that reserve in the windows of budgets."""
    reserving = Reserving()

    def admitted(records: Select[Any]) -> Select[Any]:
        return records.where(reserving.admitted(_NEW.id))

    inserted = insert_queued(_NEW, _QUEUED_VALUES, admitted).returning(JobRow.id).cte("inserted")
    return reserving.with_reservations(inserted)


_, _ANSWER = insert_answered(_NEW, _VALUES)


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
        return await self._move(
            batch.id,
            (batch.status,),
            BatchStatus.FAILED,
            {BatchRow.errors: [asdict(error) for error in errors], BatchRow.ended_at: func.clock_timestamp()},
        )

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
        records: list[dict[str, Any]] = [
            {
                "id": new_job_id(self._region),
                "project_id": batch.project_id,
                "model": job.model,
                "request": await _request_json(job.request),
                "prompt_bytes": job.request.prompt_bytes,
                "choices": job.request.sampling.n,
                "metadata": job.metadata,
                "end_user": job.end_user,
                "line": job.line,
                "requested_model": job.requested_model,
                "decisions": job.decisions.stored(),
                "log_level": level_to_store(job.log_level),
                "cache_key": job.cache_key,
                "max_age_s": None,
            }
            for job in jobs
        ]
        # In an order that all statements with several entries of the cache follow.
        keyed = sorted((item for item in records if item["cache_key"] is not None), key=lambda item: item["cache_key"])
        async with transaction(self._engine) as connection:
            if (await connection.execute(advance)).first() is None:
                return None
            common = {"key": batch.key_id, "expires_at": batch.expires_at, "batch": batch.id}
            rows = (await connection.execute(_ANSWER, {**_NEW.parameters(keyed), **common})).all() if keyed else []
            answered = {row.id for row in rows}
            queued = [item for item in records if item["id"] not in answered]
            reservations = [
                one
                for place, (item, job) in enumerate(zip(records, jobs, strict=True))
                if item["id"] not in answered
                for one in reservation_records(item["id"], job.reservations, place)
            ]
            parameters = {**_NEW.parameters(queued), **common}
            if reservations:
                parameters |= RESERVATIONS.parameters(reservations)
                refused = refusals(await connection.execute(_submit_within_budgets(), parameters))
                if refused:
                    await connection.rollback()
                    return NoRoom(next(item["line"] for item in queued if item["id"] in refused))
            elif queued:
                await connection.execute(_SUBMIT, parameters)
        hints = [Hint(item["id"], item["model"], BATCH_PRIORITY) for item in queued]
        keys = [item["cache_key"] for item in keyed if item["id"] in answered]
        return SubmittedLines([item["id"] for item in records], hints, [to_summary(row) for row in rows], keys)

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
        )
        async with transaction(self._engine) as connection:
            if not (await connection.execute(statement)).rowcount:
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
        return True

    # Jobs of a batch

    async def jobs(self, batch_id: str, after_line: int, limit: int, *, log: bool = False) -> list[LineResult]:
        """Return the jobs of the next lines after `after_line`, in order: at least one, and fewer if they are large."""
        answer = aliased(JobRow, name="answer")
        shared = (
            select(_stored_bytes(answer.output, answer.log))
            .where(answer.id == JobRow.answered_by)
            .correlate(JobRow)
            .scalar_subquery()
        )
        size = _stored_bytes(JobRow.output, JobRow.log) + func.coalesce(shared, 0)
        lines = (
            select(JobRow.batch_line, func.sum(size).over(order_by=JobRow.batch_line).label("total"))
            .where(JobRow.batch_id == batch_id, JobRow.batch_line > after_line)
            .order_by(JobRow.batch_line)
            .limit(limit)
            .subquery()
        )
        first = select(func.min(lines.c.batch_line)).scalar_subquery()
        statement = (
            select(*JOB_COLUMNS, CHARGE, JobRow.batch_line, (LOG if log else null()).label("log"))
            .join(lines, lines.c.batch_line == JobRow.batch_line)
            .where(JobRow.batch_id == batch_id, or_(lines.c.total <= PAGE_BYTES, lines.c.batch_line == first))
            .order_by(JobRow.batch_line)
        )
        rows = await self._all(statement, lambda row: row)
        return [LineResult(row.batch_line, await read_job(row), row.log) for row in rows]

    async def open_jobs(self, batch_id: str) -> list[JobSummary]:
        """Return the jobs that have not ended."""
        statement = select(*SUMMARY_COLUMNS).where(JobRow.batch_id == batch_id, JobRow.finished_at.is_(None))
        return await self._summaries(statement)

    async def _move(
        self, batch_id: str, sources: Sequence[BatchStatus], target: BatchStatus, values: dict[Any, Any]
    ) -> bool:
        guard: ColumnElement[bool] = BatchRow.status.in_([status.value for status in sources])
        statement = (
            update(BatchRow).where(BatchRow.id == batch_id, guard).values({BatchRow.status: target.value, **values})
        )
        return await self._changes(statement)


def _stored_bytes(output: Any, log: Any) -> Any:
    """The bytes of a row's output and log."""
    return func.coalesce(func.pg_column_size(output), 0) + func.coalesce(func.pg_column_size(log), 0)


async def _request_json(request: GenerateRequest) -> str:
    size = request.size + request.options_size
    return await off_loop(size, request.model_dump_json, exclude_none=True, exclude_defaults=True)
