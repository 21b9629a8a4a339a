"""A file's lines, one at a time, from any line on, with where the next one begins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from api.batches.batch import Position

# So many lines are read, and checked or answered, before other requests of this process have their turn: about a
# millisecond.
TURN = 20


@dataclass(frozen=True, slots=True)
class Line:
    """A line, without its end. `data` is None where it is longer than is allowed; `then` is the next one's place."""

    number: int
    data: bytes | None
    then: Position

    @property
    def blank(self) -> bool:
        return self.data is not None and not self.data.strip()


async def read_lines(chunks: AsyncIterator[bytes], start: Position, max_bytes: int) -> AsyncIterator[Line]:
    """The lines of a file whose bytes from `start` on are given; holds no more than `max_bytes` and a chunk."""
    number, begin = start.line, start.offset
    kept, size = b"", 0
    async for chunk in chunks:
        first = 0
        while (end := chunk.find(b"\n", first)) >= 0:
            size += end - first
            begin += size + 1
            if number % TURN == 0:
                await asyncio.sleep(0)
            yield Line(number, kept + chunk[first:end] if size <= max_bytes else None, Position(number + 1, begin))
            number, first = number + 1, end + 1
            kept, size = b"", 0
        size += len(chunk) - first
        kept = kept + chunk[first:] if size <= max_bytes else b""
    if size:
        yield Line(number, kept if size <= max_bytes else None, Position(number + 1, begin + size))
