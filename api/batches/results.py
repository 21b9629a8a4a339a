"""Writes a batch's results: one line per request, in the output file or the error file."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import orjson
from pydantic import ValidationError

from api.batches.batch import Batch, BatchStatus, BatchUsage, result_file_ids
from api.batches.endpoints import ENDPOINTS
from api.batches.jsonl_reader import Line
from api.batches.line_jobs import LineResult
from api.batches.request_line import LineRejected, content_of, parse
from api.batches.store import BatchStore, ResultFile
from api.files.blobs import CHUNK, Blobs, BlobWriter
from api.http.errors import JsonErrorResponse, render, render_failure
from api.http.members import HEADER, MemberReader
from shared.domain.errors import BudgetExceeded, ErrorCode, HeadraceError, InvalidRequest, NotFound
from shared.domain.events import parse_archive
from shared.domain.job import JobStatus, Usage
from shared.domain.json_bytes import escape_separators
from shared.domain.new_job import NewJob
from shared.runtime.chunked_json import dump_pieces
from shared.runtime.offload import off_loop
from shared.runtime.time_slice import TimeSlice

# Runs the checks of a job again, and raises the error for which it was rejected.
Recheck = Callable[[NewJob], Awaitable[None]]

PAGE = 50
EXPIRED_ERROR = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}
CANCELLED_ERROR = {"code": "batch_cancelled", "message": "This batch was cancelled before the request was executed."}


@dataclass(slots=True)
class Results:
    """The result files and totals of a batch. A file is None if it would be empty."""

    output: ResultFile | None = None
    errors: ResultFile | None = None
    completed: int = 0
    failed: int = 0
    expired: int = 0
    usage: BatchUsage = field(default_factory=BatchUsage)


async def write_results(
    batch: Batch,
    lines: AsyncIterator[Line],
    store: BatchStore,
    blobs: Blobs,
    members: MemberReader,
    recheck: Recheck,
) -> Results:
    """Write the results of a batch whose jobs have all ended. Idempotent."""
    results = Results()
    output_id, errors_id = result_file_ids(batch.id)
    jobs = _Jobs(batch, store)
    async with AsyncExitStack() as stack:
        output, errors = _Writer(stack, blobs, output_id), _Writer(stack, blobs, errors_id)
        async for line in lines:
            if line.blank:
                continue
            result = await jobs.of_line(line.number)
            entry = await _entry(batch, line, result, members, recheck)
            if result is not None and result.job.usage is not None:
                results.usage = _sum(results.usage, result.job.usage)
            if entry.succeeded:
                results.completed += 1
                await output.write(entry.content)
            else:
                results.failed += 1
                results.expired += entry.content["error"] is EXPIRED_ERROR
                await errors.write(entry.content)
        await output.flush()
        await errors.flush()
    results.output = output.file(f"{batch.id}_output.jsonl")
    results.errors = errors.file(f"{batch.id}_error.jsonl")
    return results


@dataclass(frozen=True, slots=True)
class _Entry:
    succeeded: bool
    content: dict[str, Any]


async def _entry(
    batch: Batch, line: Line, result: LineResult | None, members: MemberReader, recheck: Recheck
) -> _Entry:
    """Build the result of a line. `result` is None if the line got no job."""
    given = await off_loop(line.size, content_of, line, batch.endpoint, members)
    shared: dict[str, Any] = {"custom_id": given.custom_id, **({HEADER: given.ignored} if given.ignored else {})}
    if result is None:
        content = {"id": f"batch_req_{batch.id.removeprefix('batch_')}_{line.number}", **shared}
        if line.number >= batch.next.line:
            error = CANCELLED_ERROR if batch.ending is BatchStatus.CANCELLED else EXPIRED_ERROR
            return _Entry(False, {**content, "response": None, "error": error})
        rejection = await _rejection(batch, line, given.body, members, recheck)
        return _Entry(False, {**content, "response": _failed(content["id"], rejection), "error": None})

    job = result.job
    content = {"id": f"batch_req_{job.id.removeprefix('job_')}", **shared, **job.decisions.headers()}
    if job.request.messages is None and job.request.prompt is None:
        return _Entry(False, {**content, "response": _failed(job.id, _deleted()), "error": None})
    if job.status.succeeded:
        archived = result.log or ""

        def response_body() -> dict[str, Any]:
            return ENDPOINTS[batch.endpoint].response_body(given.body or {}, job, parse_archive(archived))

        try:
            built = await off_loop(line.size + job.output_size + len(archived), response_body)
        except (ValidationError, InvalidRequest):
            rejection = await _rejection(batch, line, given.body, members, recheck)
            return _Entry(False, {**content, "response": _failed(job.id, rejection), "error": None})
        response = {"status_code": HTTPStatus.OK.value, "request_id": job.id, "body": built}
        return _Entry(True, {**content, "response": response, "error": None})
    assert job.error is not None
    if job.error.code == ErrorCode.DEADLINE_EXCEEDED:
        return _Entry(False, {**content, "response": None, "error": EXPIRED_ERROR})
    if job.status is JobStatus.CANCELLED and batch.ending is BatchStatus.CANCELLED:
        return _Entry(False, {**content, "response": None, "error": CANCELLED_ERROR})
    failure = ENDPOINTS[batch.endpoint].rename_failure(job, job.error)
    response = _response(job.id, render_failure(failure))
    return _Entry(False, {**content, "response": response, "error": None})


async def _rejection(
    batch: Batch, line: Line, body: dict[str, Any] | None, members: MemberReader, recheck: Recheck
) -> HeadraceError:
    """Determine again, because it is not stored, why a line got no job or why its job has no response body.

    The line may be invalid, it may not fit the model's context, or validation may have become stricter since.
    """
    await asyncio.sleep(0)  # parsing a line and counting its tokens takes some milliseconds
    try:
        job = (await off_loop(line.size, parse, line, batch.endpoint, members)).job
    except LineRejected as rejected:
        return _as_request_error(rejected)
    try:
        await recheck(job.new(batch))
    except InvalidRequest as error:
        return ENDPOINTS[batch.endpoint].rename_param(job.request, error, body)
    except (NotFound, BudgetExceeded) as error:
        return error
    return InvalidRequest("This request was rejected after validation.")


def _as_request_error(rejected: LineRejected) -> HeadraceError:
    """The error that a synchronous call would have returned; without a custom_id, it names the line."""
    error = rejected.error
    message = error.message if rejected.custom_id is not None else f"Line {error.line}: {error.message}"
    param = None if error.param == "body" else (error.param or "").removeprefix("body.") or None
    return InvalidRequest(message, param=param)


def _deleted() -> HeadraceError:
    return NotFound("The request's job was deleted before the batch ended.", code="job_not_found")


def _failed(request_id: str, error: HeadraceError) -> dict[str, Any]:
    """The response that a synchronous call would have returned."""
    return _response(request_id, render(error))


def _response(request_id: str, response: JsonErrorResponse) -> dict[str, Any]:
    body = orjson.Fragment(bytes(response.body))
    return {"status_code": response.status_code, "request_id": request_id, "body": body}


def _sum(usage: BatchUsage, more: Usage) -> BatchUsage:
    return BatchUsage(
        usage.prompt_tokens + more.prompt_tokens,
        usage.cached_tokens + more.cached_tokens,
        usage.completion_tokens + more.completion_tokens,
        usage.reasoning_tokens + more.reasoning_tokens,
    )


class _Jobs:
    """Reads a batch's jobs in the order of their lines."""

    def __init__(self, batch: Batch, store: BatchStore) -> None:
        self._batch = batch
        self._store = store
        self._log = ENDPOINTS[batch.endpoint].reads_log
        self._page: deque[LineResult] = deque()
        self._after = 0
        self._more = True

    async def of_line(self, line: int) -> LineResult | None:
        """Return the job of a line; None if it has none."""
        if not self._page and self._more:
            self._page.extend(await self._store.jobs(self._batch.id, self._after, PAGE, log=self._log))
            self._more = bool(self._page)
            if self._page:
                self._after = self._page[-1].line
        if self._page and self._page[0].line == line:
            return self._page.popleft()
        return None


class _Writer:
    """Writes a result file. It is created with its first line, and complete when the stack is closed."""

    def __init__(self, stack: AsyncExitStack, blobs: Blobs, file_id: str) -> None:
        self._stack = stack
        self._blobs = blobs
        self._id = file_id
        self._blob: BlobWriter | None = None
        self._buffer = bytearray()
        self._size = 0

    async def write(self, content: dict[str, Any]) -> None:
        slice_ = TimeSlice()
        for piece in dump_pieces(content):
            self._buffer += escape_separators(piece)
            if len(self._buffer) >= CHUNK:
                await self.flush()
            if slice_.over:
                await slice_.give_way()
        self._buffer += b"\n"

    async def flush(self) -> None:
        if not self._buffer:
            return
        if self._blob is None:
            self._blob = await self._stack.enter_async_context(self._blobs.writing(self._id))
        await self._blob.write(bytes(self._buffer))
        self._size += len(self._buffer)
        self._buffer.clear()

    def file(self, name: str) -> ResultFile | None:
        """The file, for use once it is complete; None if it would be empty."""
        return ResultFile(self._id, name, self._size) if self._blob is not None else None
