"""Reads the lines of a JSONL file from any position. A byte order mark at the start of the file is skipped."""

from __future__ import annotations

import asyncio
from codecs import BOM_UTF8
from collections.abc import AsyncIterator
from dataclasses import dataclass

from api.batches.batch import Position

# Number of lines between yields to the event loop: about a millisecond of work.
YIELD_LINES = 20


@dataclass(frozen=True, slots=True)
class Line:
    """A line without its line break. `data` is None if it is too long; `next` is the start of the next line."""

    number: int
    data: bytes | None
    next: Position

    @property
    def size(self) -> int:
        return len(self.data or b"")

    @property
    def blank(self) -> bool:
        return self.data is not None and not self.data.strip()


def _without_mark(number: int, data: bytes) -> bytes:
    return data.removeprefix(BOM_UTF8) if number == 1 else data


async def read_lines(chunks: AsyncIterator[bytes], start: Position, max_bytes: int) -> AsyncIterator[Line]:
    """Yield the lines of a file, given its bytes from `start` on. Buffers at most `max_bytes` and a chunk."""
    number, offset = start.line, start.offset
    buffered, size = b"", 0
    async for chunk in chunks:
        first = 0
        while (end := chunk.find(b"\n", first)) >= 0:
            size += end - first
            offset += size + 1
            if number % YIELD_LINES == 0:
                await asyncio.sleep(0)
            data = _without_mark(number, buffered + chunk[first:end]) if size <= max_bytes else None
            yield Line(number, data, Position(number + 1, offset))
            number, first = number + 1, end + 1
            buffered, size = b"", 0
        size += len(chunk) - first
        buffered = buffered + chunk[first:] if size <= max_bytes else b""
    if size:
        yield Line(
            number, _without_mark(number, buffered) if size <= max_bytes else None, Position(number + 1, offset + size)
        )
