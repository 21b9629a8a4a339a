"""Exports the request log as a file, which is written while it is sent: a portion of the log at a time is in memory."""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.http.errors import IncompleteResponse
from api.http.parquet import load_pyarrow
from api.keys.principal import Principal
from api.request_log.bodies import Bodies, Body, Missing
from api.request_log.content import BodyRedactor
from api.requests.export_store import ExportStore, format_export_id
from api.requests.filters import Cursor, RequestFilters
from api.requests.lines import TYPES, ExportFormat, JsonLines, LineWriter, ParquetLines, export_line
from api.requests.redactors import Redactors
from api.requests.sampling import Sample, below, sample_number
from api.requests.store import LoggedRequest, LoggedRequestStore, RequestPage
from shared.domain.errors import Unavailable
from shared.domain.log_level import LogLevel
from shared.runtime.portions import portions
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

# Exports that a process makes at a time: each takes a part of its CPU, which all requests need.
AT_ONCE = 2
# Rows of the log that one statement returns.
PORTION = 500
# Bodies that are read together: at most this many, and about as many as have these tokens, and these bytes, compressed.
GROUP, GROUP_TOKENS, GROUP_BYTES = 32, 200_000, 4 * 1024 * 1024
LEVEL_HEADER = "x-headrace-redaction-level"
EXPORT_HEADER = "x-headrace-export"


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How requests are exported. `level`: at most this much of their bodies, `redacted` or `full`."""

    file_format: ExportFormat = "jsonl"
    level: LogLevel = LogLevel.REDACTED
    sample: Sample | None = None
    seed: int = 0

    def described(self) -> dict[str, Any]:
        """The options as JSON, for the list of exports."""
        sample = {} if self.sample is None else {"sample": self.sample.count or self.sample.fraction, "seed": self.seed}
        return {"format": self.file_format, **sample}


@dataclass(frozen=True, slots=True)
class ExportSources:
    """What exports are made from."""

    store: LoggedRequestStore
    bodies: Bodies
    redactors: Redactors


class Exports:
    """Makes exports, few at a time."""

    def __init__(self, sources: ExportSources, exports: ExportStore, metrics: Metrics) -> None:
        self._sources = sources
        self._exports = exports
        self._metrics = metrics
        self._running = 0

    async def start(self, principal: Principal, filters: RequestFilters, options: ExportOptions) -> StreamingResponse:
        """Begin an export, and note it in the list of exports and in the audit log.

        Raises:
            InvalidRequest: the file format needs a package that is not installed.
            Unavailable: other exports are under way.
        """
        if options.file_format == "parquet":
            await load_pyarrow()
        if self._running >= AT_ONCE:
            raise Unavailable("Other exports of the request log are under way; try again when they have ended.")
        self._running += 1
        try:
            described = {**filters.described(), **options.described()}
            export_id = await self._exports.start(principal, filters.project_id, described, options.level)
        except BaseException:
            self._running -= 1
            raise
        return _ExportResponse(self, _Writing(self._sources, self._metrics, filters, options, export_id))

    async def ended(self, writing: _Writing) -> None:
        """Note the end of an export."""
        self._running -= 1
        outcome = "complete" if writing.is_complete else "failed" if writing.has_failed else "interrupted"
        self._metrics.request_exports.labels(writing.options.file_format, outcome).inc()
        try:
            await self._exports.end(writing.export_id, writing.rows, complete=writing.is_complete)
        except Exception as error:
            logger.warning("the end of export=%s could not be noted", writing.export_id, exc_info=error)


class _Writing:
    """An export that is written."""

    def __init__(
        self,
        sources: ExportSources,
        metrics: Metrics,
        filters: RequestFilters,
        options: ExportOptions,
        export_id: int,
    ) -> None:
        self.options = options
        self.export_id = export_id
        self.rows = 0
        self.is_complete = False
        self.has_failed = False
        self._sources = sources
        self._metrics = metrics
        self._filters = replace(filters, has_body=True, seed=options.seed)

    async def parts(self) -> AsyncIterator[bytes]:
        """The parts of the file.

        Raises:
            IncompleteResponse: it cannot be completed. The connection is closed then.
        """
        try:
            async for part in self._parts():
                yield part
            self.is_complete = True
        except Exception as error:
            self.has_failed = True
            logger.warning("export=%s failed after %d requests", self.export_id, self.rows, exc_info=error)
            raise IncompleteResponse from error

    async def _parts(self) -> AsyncIterator[bytes]:
        name, redactors = format_export_id(self.export_id), dict[int, BodyRedactor]()
        writer: LineWriter = (
            JsonLines() if self.options.file_format == "jsonl" else ParquetLines(name, self.options.level)
        )
        async for group in self._groups():
            if self.options.level is not LogLevel.FULL:
                for project_id in {row.project_id for row in group} - redactors.keys():
                    redactors[project_id] = await self._sources.redactors.of(project_id)
            bodies, times = self._sources.bodies, {"since": group[-1].ended_at, "until": group[0].ended_at}
            sizes = await bodies.sizes([row.job_id for row in group], **times)
            for rows in _fitting(group, sizes):
                found = await bodies.open_bodies([row.job_id for row in rows], **times)
                lines = await asyncio.to_thread(_lines, rows, found, redactors, name)
                del found
                part = await asyncio.to_thread(writer.add, lines)
                self.rows += len(lines)
                self._metrics.exported_requests.inc(len(lines))
                if part:
                    yield part
        yield await asyncio.to_thread(writer.end, self.rows)

    async def _groups(self) -> AsyncIterator[list[LoggedRequest]]:
        """The requests to export, newest first, as many at a time as their bodies should be in memory."""
        sample = self.options.sample
        if sample is not None and sample.count is not None:
            for group in _grouped(await self._sampled(sample.count)):
                yield group
            return
        filters = self._filters
        if sample is not None and sample.fraction is not None:
            filters = replace(filters, below=below(sample.fraction))
        async for page in self._pages(filters):
            for group in _grouped(page.requests):
                yield group

    async def _sampled(self, count: int) -> list[LoggedRequest]:
        """The requests with the smallest numbers. The more were read, the fewer can still be among them."""
        # The largest number first: heapq has the smallest first, so the bits are inverted.
        chosen: list[tuple[bytes, str, LoggedRequest]] = []
        filters, cursor = self._filters, None
        while True:
            page = await self._sources.store.page(filters, limit=PORTION, after=cursor)
            for row in page.requests:
                number = sample_number(self.options.seed, row.job_id)
                entry = (bytes(255 - byte for byte in number), row.job_id, row)
                if len(chosen) < count:
                    heapq.heappush(chosen, entry)
                else:
                    heapq.heappushpop(chosen, entry)
            if page.cursor is None:
                break
            cursor = page.cursor
            if len(chosen) == count:
                filters = replace(filters, below=bytes(255 - byte for byte in chosen[0][0]))
        return sorted((row for _, _, row in chosen), key=lambda row: (row.ended_at, row.job_id), reverse=True)

    async def _pages(self, filters: RequestFilters) -> AsyncIterator[RequestPage]:
        cursor: Cursor | None = None
        while True:
            page = await self._sources.store.page(filters, limit=PORTION, after=cursor)
            yield page
            if page.cursor is None:
                return
            cursor = page.cursor


def _lines(
    group: Sequence[LoggedRequest],
    bodies: Mapping[str, Body | Missing],
    redactors: Mapping[int, BodyRedactor],
    export_id: str,
) -> list[dict[str, Any]]:
    """The lines of requests. A body may have been erased, or have expired, since its row was read."""
    found = []
    for row in group:
        body = bodies.get(row.job_id)
        if isinstance(body, Body):
            line = export_line(row, body, redactors.get(row.project_id), export_id)
            if line is not None:
                found.append(line)
    return found


def _grouped(rows: Sequence[LoggedRequest]) -> Iterator[list[LoggedRequest]]:
    """The rows in portions whose bodies are read together, as far as tokens say how large they are."""
    return portions(
        rows, lambda row: (row.input_tokens or 0) + (row.output_tokens or 0), max_size=GROUP_TOKENS, max_items=GROUP
    )


def _fitting(rows: Sequence[LoggedRequest], sizes: Mapping[str, int]) -> Iterator[list[LoggedRequest]]:
    """The rows in portions whose bodies fit in memory; each has at least one. Images and files have few tokens."""
    return portions(rows, lambda row: sizes.get(row.job_id, 0), max_size=GROUP_BYTES)


class _ExportResponse(StreamingResponse):
    """The file as a response. However it ends, that is noted."""

    def __init__(self, exports: Exports, writing: _Writing) -> None:
        options = writing.options
        name = format_export_id(writing.export_id)
        headers = {
            "Cache-Control": "no-store",
            "Content-Disposition": f'attachment; filename="{name}.{options.file_format}"',
            EXPORT_HEADER: name,
            LEVEL_HEADER: options.level.value,
        }
        super().__init__(writing.parts(), headers=headers, media_type=TYPES[options.file_format])
        self._exports = exports
        self._writing = writing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._exports.ended(self._writing)
