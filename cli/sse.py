"""Parses server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from cli.errors import Members


@dataclass(frozen=True)
class ServerEvent:
    """One event. `id` is its number in the job's log; events that are not in the log have none."""

    id: int | None
    name: str
    data: dict[str, Any]

    @property
    def terminal(self) -> bool:
        """Whether it is the last event of its job."""
        return self.name in TERMINAL


TERMINAL = frozenset({"job.completed", "job.incomplete", "job.failed", "job.cancelled", "job.expired"})


def parse_events(chunks: Iterable[bytes]) -> Iterator[ServerEvent]:
    """Yield the complete events; comments, and an event that was cut off, are skipped.

    Lines end at CR and LF only: the data may contain other line separators, such as U+2028.
    """
    identifier, name, data = "", "", list[bytes]()
    for line in _lines(chunks):
        if not line:
            if data:
                yield _event(identifier, name, b"\n".join(data))
            identifier, name, data = "", "", []
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match field:
            case b"id":
                identifier = value.decode("utf-8", "replace")
            case b"event":
                name = value.decode("utf-8", "replace")
            case b"data":
                data.append(value)


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    # Only the end of the buffer can be an unfinished line; it is joined once a line end arrives.
    parts: list[bytes] = []
    for chunk in chunks:
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            yield b"".join([*parts, line]).removesuffix(b"\r")
            parts = []
        if rest:
            parts.append(rest)


def _event(identifier: str, name: str, data: bytes) -> ServerEvent:
    value = json.loads(data, object_hook=Members)
    return ServerEvent(
        int(identifier) if identifier.isdecimal() else None, name, value if isinstance(value, dict) else Members()
    )
