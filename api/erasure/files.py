"""Erases lines of JSONL files. Lines keep their lengths, so that the sizes and positions that are stored stay true."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

import orjson

from api.batches.batch import Position
from api.batches.jsonl_reader import Line, read_lines
from api.files.blobs import BlobMissing, Blobs
from shared.domain.owner import end_user_name
from shared.runtime.offload import off_loop

# What the line of a result becomes. Shorter lines become blank.
ERASED = {"error": {"code": "erased", "message": "The data of this request's end user was erased."}}


class Span(NamedTuple):
    """A part of a file, and what it is replaced by, which is as long."""

    start: int
    replacement: bytes

    @property
    def end(self) -> int:
        return self.start + len(self.replacement)


# What a line is replaced by; None: the line remains.
Eraser = Callable[[Line], bytes | None]


class FileErasure:
    """Erases lines in the blobs of files."""

    def __init__(self, blobs: Blobs, *, max_line_bytes: int) -> None:
        self._blobs = blobs
        self._max_line_bytes = max_line_bytes

    async def requests_of(self, file_id: str, end_user: str) -> tuple[int, set[str]]:
        """Erase the lines of a batch's input that name an end user. Returns how many, and their custom ids."""
        custom_ids: set[str] = set()

        def erase(line: Line) -> bytes | None:
            request = _read(line)
            if end_user not in _users(request):
                return None
            if isinstance(custom_id := request.get("custom_id"), str):
                custom_ids.add(custom_id)
            return b""

        return await self._erase(file_id, erase), custom_ids

    async def results_of(self, file_id: str, job_ids: Sequence[str], custom_ids: set[str]) -> int:
        """Erase the results of jobs, or of requests with these custom ids. Returns how many there were."""
        line_ids = {f"batch_req_{job_id.removeprefix('job_')}" for job_id in job_ids}
        stub = orjson.dumps(ERASED)

        def erase(line: Line) -> bytes | None:
            result = _read(line)
            if result.get("id") in line_ids or result.get("custom_id") in custom_ids:
                return stub
            return None

        return await self._erase(file_id, erase)

    async def _erase(self, file_id: str, eraser: Eraser) -> int:
        spans: list[Span] = []
        try:
            spans = await self._find(file_id, eraser)
            if spans:
                await self._write(file_id, spans)
        except BlobMissing:  # it was deleted meanwhile
            return 0
        return len(spans)

    async def _find(self, file_id: str, eraser: Eraser) -> list[Span]:
        spans: list[Span] = []
        start = Position()
        async with aclosing(self._blobs.read(file_id)) as chunks:
            async for line in read_lines(chunks, start, self._max_line_bytes):
                replacement = await off_loop(line.size, eraser, line)
                if replacement is not None:
                    # The end of the line, which the last one may lack, remains; a mark at the beginning does too.
                    length = line.size
                    marked = line.next.offset - start.offset - length > 1
                    begin = start.offset + (3 if marked and start.offset == 0 else 0)
                    spans.append(Span(begin, _fill(replacement, length)))
                start = line.next
        return spans

    async def _write(self, file_id: str, spans: Sequence[Span]) -> None:
        """Replace the blob by one with these parts replaced. Readers of the old one finish reading it."""
        offset = place = 0
        async with aclosing(self._blobs.read(file_id)) as chunks, self._blobs.writing(file_id) as written:
            async for chunk in chunks:
                changed = bytearray(chunk)
                until = offset + len(chunk)
                while place < len(spans) and spans[place].start < until:
                    span = spans[place]
                    first, last = max(span.start, offset), min(span.end, until)
                    changed[first - offset : last - offset] = span.replacement[first - span.start : last - span.start]
                    if span.end > until:
                        break
                    place += 1
                await written.write(bytes(changed))
                offset = until


def _fill(replacement: bytes, length: int) -> bytes:
    return replacement.ljust(length) if len(replacement) <= length else b" " * length


def _read(line: Line) -> dict[str, Any]:
    """The object in a line; an empty one if there is none."""
    try:
        value = orjson.loads(line.data or b"")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _users(request: dict[str, Any]) -> set[str | None]:
    """The names of the end user that a line has, as jobs have them."""
    body = request.get("body")
    if not isinstance(body, dict):
        return set()
    metadata = body.get("metadata")
    found = [body.get("user"), body.get("safety_identifier")]
    if isinstance(metadata, dict):
        found.append(metadata.get("user_id"))
    return {end_user_name(name) for name in found if isinstance(name, str)} - {None}
