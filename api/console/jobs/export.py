"""The list of jobs as a file: CSV for spreadsheets, JSON lines for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Literal

import orjson

from api.console.jobs.conditions import Conditions
from api.console.jobs.service import ConsoleJobs
from api.console.key_names import KeyNames
from api.jobs.schemas import summary_view
from api.jobs.search_store import JobPage
from api.keys.store import format_id
from shared.domain.job import JobSummary

ExportFormat = Literal["csv", "jsonl"]
TYPES: Mapping[ExportFormat, str] = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson"}
MAX_JOBS = 50_000
PAGE_JOBS = 500
_COLUMNS = (
    "id",
    "status",
    "model",
    "requested_model",
    "project",
    "key",
    "user",
    "priority",
    "created_at",
    "started_at",
    "first_token_at",
    "finished_at",
    "queued_ms",
    "ttft_ms",
    "total_ms",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "attempts",
    "error_code",
    "error_message",
    "metadata",
)
_LEFT_OUT = {"status_url", "stream_url", "cancel_url", "queue_position", "eta_s"}
# A spreadsheet takes a cell that begins with one of these for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


async def export(
    jobs: ConsoleJobs, project_id: int | None, conditions: Conditions, file_format: ExportFormat
) -> AsyncIterator[bytes]:
    """The parts of a file with all jobs that meet the conditions, newest first, at most `MAX_JOBS`.

    The first page is read before this returns, so that a condition that cannot be met results in an error response.
    """
    first = await jobs.page(project_id, conditions, limit=PAGE_JOBS, after=None)
    return _parts(jobs, project_id, conditions, file_format, first)


async def _parts(
    jobs: ConsoleJobs, project_id: int | None, conditions: Conditions, file_format: ExportFormat, page: JobPage
) -> AsyncIterator[bytes]:
    if file_format == "csv":
        yield _csv([list(_COLUMNS)])
    count = 0
    while True:
        found = page.jobs[: MAX_JOBS - count]
        names = await jobs.names(found)
        count += len(found)
        if file_format == "csv":
            yield _csv([_cells(job, names[job.owner.key_id]) for job in found])
        else:
            yield b"".join(_line(job, names[job.owner.key_id]) for job in found)
        if page.cursor is None or count >= MAX_JOBS:
            return
        page = await jobs.page(project_id, conditions, limit=PAGE_JOBS, after=page.cursor)


def _line(job: JobSummary, names: KeyNames) -> bytes:
    """The job as the API shows it in lists, with its project and its key."""
    view = summary_view(job).model_dump(mode="json", exclude=_LEFT_OUT)
    owner = {"project": names.project, "key": format_id(job.owner.key_id), "key_name": names.key}
    return orjson.dumps(view | owner) + b"\n"


def _cells(job: JobSummary, names: KeyNames) -> list[str]:
    timings, usage, error = job.timings(), job.usage, job.error
    values: Sequence[object] = (
        job.id,
        job.status.value,
        job.model,
        job.requested_model,
        names.project,
        format_id(job.owner.key_id),
        job.owner.end_user,
        job.priority,
        *(
            moment and moment.isoformat()
            for moment in (job.created_at, job.started_at, job.first_token_at, job.finished_at)
        ),
        timings["queued_ms"],
        timings["ttft_ms"],
        timings["total_ms"],
        usage and usage.prompt_tokens,
        usage and usage.cached_tokens,
        usage and usage.completion_tokens,
        len(job.attempts),
        error and error.code,
        error and error.message,
        "; ".join(f"{name}={value}" for name, value in job.metadata.items()),
    )
    return [_cell(value) for value in values]


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _csv(lines: Sequence[Sequence[str]]) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerows(lines)
    return file.getvalue().encode()
