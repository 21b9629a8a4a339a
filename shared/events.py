"""The events of a job's log: one engine-neutral schema that every face of the API is formatted from.

An event is encoded once, by whoever makes it, and the same bytes go to the log, to readers and into the
row's archive. `seq` numbers a job's events upwards from 1; a reader's cursor is the last one it has seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from shared.job import Choice, JobStatus


class EventType(StrEnum):
    """What happened. The last five end the log and are named after the job's terminal status."""

    STARTED = "started"
    DELTA = "delta"
    RESTARTED = "restarted"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def terminal(self) -> bool:
        return self.value in _TERMINAL_NAMES


_TERMINAL_NAMES = frozenset(status.value for status in JobStatus if status.terminal)


@dataclass(slots=True)
class Delta:
    """Text that one choice gained. `token_ids` made it; they stay inside, for the next worker.

    An engine that is not told the ids counts the tokens alone, as `unnamed`.
    """

    index: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    unnamed: int = 0

    @property
    def tokens(self) -> int:
        """How many tokens made it."""
        return len(self.token_ids) + self.unnamed

    def merged(self, later: Delta) -> Delta:
        """This delta and the one after it, of the same choice, as one."""
        return Delta(
            self.index,
            self.text + later.text,
            self.token_ids + later.token_ids,
            later.finish_reason or self.finish_reason,
            self.unnamed + later.unnamed,
        )


@dataclass(frozen=True, slots=True)
class Event:
    """One event as it travels: `data` is JSON; `token_ids` is JSON too, a list, or a number where the ids are not
    known, and is never shown to a client."""

    seq: int
    type: EventType
    data: bytes
    token_ids: bytes = b""

    def line(self) -> bytes:
        """`<seq> <type> <json>`: a line of a live message and of the archive."""
        return b"%d %s %s" % (self.seq, self.type.value.encode(), self.data)

    def payload(self) -> dict[str, Any]:
        result: dict[str, Any] = orjson.loads(self.data)
        return result

    def delta(self) -> Delta:
        """The delta that a `DELTA` event carries."""
        payload = self.payload()
        tokens = orjson.loads(self.token_ids) if self.token_ids else []
        ids, unnamed = ((), tokens) if isinstance(tokens, int) else (tuple(tokens), 0)
        return Delta(payload["index"], payload["text"], ids, payload.get("finish_reason"), unnamed)


def parse_line(line: bytes) -> Event:
    """The event of a `<seq> <type> <json>` line."""
    seq, kind, data = line.split(b" ", 2)
    return Event(int(seq), EventType(kind.decode()), data)


def archive(events: Iterable[Event]) -> str:
    """A finished log as lines, for the row."""
    return b"\n".join(item.line() for item in events).decode()


def parse_archive(text: str) -> list[Event]:
    return [parse_line(line) for line in text.encode().split(b"\n") if line]


def delta_event(seq: int, delta: Delta) -> Event:
    payload: dict[str, Any] = {"index": delta.index, "text": delta.text}
    if delta.finish_reason is not None:
        payload["finish_reason"] = delta.finish_reason
    tokens = orjson.dumps(delta.token_ids or delta.unnamed) if delta.tokens else b""
    return Event(seq, EventType.DELTA, orjson.dumps(payload), tokens)


def event(seq: int, kind: EventType, payload: dict[str, Any]) -> Event:
    return Event(seq, kind, orjson.dumps(payload))


class Transcript:
    """What the events so far amount to: each choice's text, token ids and finish reason."""

    def __init__(self, choices: int) -> None:
        self._choices = choices
        self.deltas: list[Delta] = []
        self.clear()

    @classmethod
    def of(cls, events: Iterable[Event], choices: int) -> Transcript:
        transcript = cls(choices)
        for item in events:
            if item.type is EventType.DELTA:
                transcript.add(item.delta())
            elif item.type is EventType.RESTARTED:
                transcript.clear()
        return transcript

    def clear(self) -> None:
        self.deltas = []

    def add(self, delta: Delta) -> None:
        self.deltas.append(delta)

    @property
    def tokens(self) -> int:
        return sum(delta.tokens for delta in self.deltas)

    def choices(self) -> tuple[Choice, ...]:
        texts: list[list[str]] = [[] for _ in range(self._choices)]
        reasons: list[str | None] = [None] * self._choices
        for delta in self.deltas:
            texts[delta.index].append(delta.text)
            reasons[delta.index] = delta.finish_reason or reasons[delta.index]
        return tuple(
            Choice(index, "".join(text), reason)
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        )
