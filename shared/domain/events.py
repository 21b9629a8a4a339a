"""The events of a job's log: one engine-neutral schema, which each API dialect converts to its own format.

An event is encoded once, by the process that creates it, and the same bytes go to the log, to readers and to the
archive in the row. `seq` numbers a job's events, rising from 1; a reader's cursor is the last `seq` that it received.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import orjson

from shared.domain.job import JobStatus, known_fields


class EventType(StrEnum):
    """The type of an event. The last five end the log and are named after the job's terminal status.

    `QUEUED` is never in a log: it reports the queue position of a waiting job to its readers.

    The type of an event that a newer version wrote is kept under its name. It equals none of the members, so readers
    skip the event.
    """

    QUEUED = "queued"
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
        return self in _TERMINAL

    @property
    def known(self) -> bool:
        """Whether this version knows the type."""
        return self in _NAMES

    @classmethod
    def _missing_(cls, value: object) -> EventType | None:
        if not isinstance(value, str) or not value.isidentifier():
            return None
        unknown = str.__new__(cls, value)
        unknown._name_, unknown._value_ = "UNKNOWN", value
        return unknown


_TERMINAL = frozenset(EventType(status.value) for status in JobStatus if status.terminal)
# Encoded here once, because every event needs it.
_NAMES = {kind: kind.value.encode() for kind in EventType}
_TYPES = {name: kind for kind, name in _NAMES.items()}


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A fragment of a tool call. The first one has the call's id and name; the joined `arguments` are JSON."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class Delta:
    """New output of one choice: text, reasoning, fragments of tool calls.

    `token_ids` are the tokens that produced it. They are internal: a later attempt resumes from them. An engine that
    does not know the ids reports only the number of tokens, as `unidentified`. `logprobs` has an entry per token:
    `{"token", "logprob", "bytes", "top": [{"token", "logprob", "bytes"}, ...]}`.

    `prompt_tokens`, the length of the prompt, comes with a job's first delta if it is known by then. `prompt_logprobs`
    comes with the first delta of the first choice: per token of the prompt, None or the likely tokens at its position,
    `{token id as text: {"logprob", "rank", "decoded_token"}, ...}`.
    """

    index: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    unidentified: int = 0
    reasoning: str = ""
    tool_calls: tuple[CallDelta, ...] = ()
    logprobs: tuple[dict[str, Any], ...] = ()
    stop_reason: int | str | None = None
    prompt_tokens: int | None = None
    prompt_logprobs: list[dict[str, Any] | None] | None = None

    @property
    def tokens(self) -> int:
        """The number of tokens that produced it."""
        return len(self.token_ids) + self.unidentified

    @property
    def plain(self) -> bool:
        """Whether it has only text and a finish reason."""
        return (
            not (self.reasoning or self.tool_calls or self.logprobs)
            and self.stop_reason is None
            and self.prompt_tokens is None
            and self.prompt_logprobs is None
        )

    @property
    def visible(self) -> bool:
        """Whether a reader sees any of it. Tokens that are only part of a character have no text yet."""
        return bool(self.text or self.finish_reason or self.reasoning or self.tool_calls)

    def merged(self, later: Delta) -> Delta:
        """Return this delta merged with the next one of the same choice."""
        return Delta(
            self.index,
            self.text + later.text,
            self.token_ids + later.token_ids,
            later.finish_reason or self.finish_reason,
            self.unidentified + later.unidentified,
            self.reasoning + later.reasoning,
            joined_calls(self.tool_calls + later.tool_calls) if self.tool_calls or later.tool_calls else (),
            self.logprobs + later.logprobs,
            self.stop_reason if later.stop_reason is None else later.stop_reason,
            later.prompt_tokens if self.prompt_tokens is None else self.prompt_tokens,
            later.prompt_logprobs if self.prompt_logprobs is None else self.prompt_logprobs,
        )


def joined_calls(calls: Iterable[CallDelta]) -> tuple[CallDelta, ...]:
    """Join the fragments of each call; the calls keep their order."""
    joined: dict[int, CallDelta] = {}
    for call in calls:
        prior = joined.get(call.index)
        joined[call.index] = (
            call
            if prior is None
            else CallDelta(call.index, prior.id or call.id, prior.name or call.name, prior.arguments + call.arguments)
        )
    return tuple(joined.values())


class Event(NamedTuple):
    """One encoded event. `data` is JSON.

    `token_ids` is a JSON list, or the number of tokens if the ids are not known; clients never receive it.
    """

    seq: int
    type: EventType
    data: bytes
    token_ids: bytes = b""

    @property
    def name(self) -> bytes:
        """The encoded type."""
        return _NAMES.get(self.type) or self.type.value.encode()

    def line(self) -> bytes:
        """`<seq> <type> <json>`: a line of a published message and of the archive."""
        return b"%d %b %b" % (self.seq, self.name, self.data)

    def payload(self) -> dict[str, Any]:
        result: dict[str, Any] = orjson.loads(self.data)
        return result

    def delta(self) -> Delta:
        """Decode the delta of a `DELTA` event."""
        payload = self.payload()
        tokens = orjson.loads(self.token_ids) if self.token_ids else []
        ids, unidentified = ((), tokens) if isinstance(tokens, int) else (tuple(tokens), 0)
        return Delta(
            payload["index"],
            payload["text"],
            ids,
            payload.get("finish_reason"),
            unidentified,
            payload.get("reasoning", ""),
            tuple(CallDelta(**known_fields(CallDelta, call)) for call in payload.get("tool_calls", ())),
            tuple(payload.get("logprobs", ())),
            payload.get("stop_reason"),
            payload.get("prompt_tokens"),
            payload.get("prompt_logprobs"),
        )


def parse_line(line: bytes) -> Event:
    """Parse a `<seq> <type> <json>` line."""
    seq, kind, data = line.split(b" ", 2)
    return Event(int(seq), _TYPES.get(kind) or EventType(kind.decode()), data)


def archive(events: Iterable[Event]) -> str:
    """Encode a finished log as lines, for the job's row."""
    return b"\n".join(item.line() for item in events).decode()


def parse_archive(text: str) -> list[Event]:
    return [parse_line(line) for line in text.encode().split(b"\n") if line]


def delta_event(seq: int, delta: Delta, *, with_count: bool = False) -> Event:
    """Encode a delta as an event; `with_count` includes its number of tokens."""
    payload: dict[str, Any] = {"index": delta.index, "text": delta.text}
    if delta.finish_reason is not None:
        payload["finish_reason"] = delta.finish_reason
    if not delta.plain:
        payload |= _optional_fields(delta)
    if with_count:
        payload["tokens"] = delta.tokens
    tokens = orjson.dumps(delta.token_ids or delta.unidentified) if delta.tokens else b""
    return Event(seq, EventType.DELTA, orjson.dumps(payload), tokens)


def _optional_fields(delta: Delta) -> dict[str, Any]:
    payload: dict[str, Any] = {}
    if delta.reasoning:
        payload["reasoning"] = delta.reasoning
    if delta.tool_calls:
        payload["tool_calls"] = [
            {name: value for name, value in asdict(call).items() if value is not None} for call in delta.tool_calls
        ]
    if delta.logprobs:
        payload["logprobs"] = delta.logprobs
    if delta.stop_reason is not None:
        payload["stop_reason"] = delta.stop_reason
    if delta.prompt_tokens is not None:
        payload["prompt_tokens"] = delta.prompt_tokens
    if delta.prompt_logprobs is not None:
        payload["prompt_logprobs"] = delta.prompt_logprobs
    return payload


def event(seq: int, kind: EventType, payload: dict[str, Any]) -> Event:
    return Event(seq, kind, orjson.dumps(payload))


SEQ_PER_ATTEMPT = 1_000_000


def seq_before(attempt: int) -> int:
    """The `seq` after which an attempt starts if the log before it was lost; no reader has received a higher one."""
    return (attempt - 1) * SEQ_PER_ATTEMPT
