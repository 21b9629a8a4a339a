"""The events of a job's log: one engine-neutral schema, which each API dialect converts to its own format.

An event is encoded once, by the process that creates it, and the same bytes go to the log, to readers and to the
archive in the row. `seq` numbers a job's events, rising from 1; a reader's cursor is the last `seq` that it received.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from itertools import chain
from typing import Any, NamedTuple

import orjson

from shared.domain.job import JobStatus, known_fields
from shared.domain.json_bytes import kept_json
from shared.domain.opaque import OpaquePart, decode_all
from shared.runtime.time_slice import TimeSlice


class EventType(StrEnum):
    """The type of an event. The last five end the log and are named after the job's terminal status.

    `QUEUED` is never in a log: it reports the queue position of a waiting job to its readers. `UPSTREAM` is only for
    workers: it has the `UpstreamState` of the requests that later attempts may resume.

    The type of an event that a newer version wrote is kept under its name. It equals none of the members, so readers
    skip the event.
    """

    QUEUED = "queued"
    STARTED = "started"
    UPSTREAM = "upstream"
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
    def public(self) -> bool:
        """Whether readers receive it: this version knows the type, and it is not only for workers."""
        return self in _PUBLIC

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
_PUBLIC = frozenset(EventType) - {EventType.UPSTREAM}


@dataclass(frozen=True, slots=True)
class UpstreamState:
    """A request that an upstream is running, as a later attempt needs it to resume or cancel it.

    `id` is the upstream's; `data` has what else the engine needs, and can be encoded as JSON.
    """

    id: str
    data: dict[str, Any] = field(default_factory=dict)

    def payload(self) -> dict[str, Any]:
        """The payload of its event."""
        return {"id": self.id, "data": self.data}

    @classmethod
    def of(cls, event: Event) -> UpstreamState:
        """Decode an `UPSTREAM` event."""
        payload = event.payload()
        return cls(payload["id"], payload.get("data") or {})


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
    does not know the ids reports only the number of tokens, as `unidentified`. `logprobs` has an encoded entry per
    token (`shared.domain.logprobs`). Those of an echoed prompt may precede its text, in deltas without text.

    `prompt_tokens`, the length of the prompt, comes with a job's first delta if it is known by then. `prompt_logprobs`
    has an encoded entry per token of the prompt; it comes with the first deltas of the first choice.

    `opaque` has parts of the provider, which follow the delta's other content.

    `cursor` is the upstream's position after this delta, if a later attempt can continue there.

    `refused`: the upstream says that the text is a refusal to answer.
    """

    index: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    unidentified: int = 0
    reasoning: str = ""
    tool_calls: tuple[CallDelta, ...] = ()
    logprobs: Sequence[bytes] = ()
    stop_reason: int | str | None = None
    prompt_tokens: int | None = None
    prompt_logprobs: Sequence[bytes] = ()
    opaque: tuple[OpaquePart, ...] = ()
    cursor: int | str | None = None
    refused: bool = False

    @property
    def tokens(self) -> int:
        """The number of tokens that produced it."""
        return len(self.token_ids) + self.unidentified

    @property
    def plain(self) -> bool:
        """Whether it has only text and a finish reason."""
        return (
            not (self.reasoning or self.tool_calls or self.logprobs or self.prompt_logprobs or self.opaque)
            and not self.refused
            and self.stop_reason is None
            and self.prompt_tokens is None
        )

    @property
    def visible(self) -> bool:
        """Whether a reader sees any of it. Tokens that are only part of a character have no text yet."""
        if self.text or self.finish_reason or self.reasoning or self.tool_calls or self.opaque:
            return True
        return bool((self.logprobs or self.prompt_logprobs) and not self.tokens)

    @property
    def size(self) -> int:
        """About the bytes of its event."""
        size = len(self.text) + len(self.reasoning)
        if self.logprobs or self.prompt_logprobs:
            size += sum(map(len, self.logprobs)) + sum(map(len, self.prompt_logprobs))
        return size + sum([part.size for part in self.opaque]) if self.opaque else size


def merge_deltas(deltas: Sequence[Delta]) -> Delta:
    """Merge consecutive deltas of one choice, of which there is at least one."""
    first = deltas[0]
    if len(deltas) == 1:
        return first
    merged = Delta(
        first.index,
        "".join([delta.text for delta in deltas]),
        tuple(chain.from_iterable([delta.token_ids for delta in deltas])),
        next((delta.finish_reason for delta in reversed(deltas) if delta.finish_reason), None),
        sum([delta.unidentified for delta in deltas]),
        cursor=next((delta.cursor for delta in reversed(deltas) if delta.cursor is not None), None),
    )
    if not all(delta.plain for delta in deltas):
        merged.reasoning = "".join([delta.reasoning for delta in deltas])
        merged.tool_calls = joined_calls(chain.from_iterable([delta.tool_calls for delta in deltas]))
        merged.logprobs = tuple(chain.from_iterable([delta.logprobs for delta in deltas]))
        merged.stop_reason = next((item.stop_reason for item in reversed(deltas) if item.stop_reason is not None), None)
        merged.prompt_tokens = next((item.prompt_tokens for item in deltas if item.prompt_tokens is not None), None)
        merged.prompt_logprobs = tuple(chain.from_iterable([delta.prompt_logprobs for delta in deltas]))
        merged.opaque = tuple(chain.from_iterable([delta.opaque for delta in deltas]))
        merged.refused = any(delta.refused for delta in deltas)
    return merged


def joined_calls(calls: Iterable[CallDelta]) -> tuple[CallDelta, ...]:
    """Join the fragments of each call; the calls keep their order."""
    fragments: dict[int, list[CallDelta]] = {}
    for call in calls:
        fragments.setdefault(call.index, []).append(call)
    return tuple(
        CallDelta(
            index,
            next((call.id for call in parts if call.id), None),
            next((call.name for call in parts if call.name), None),
            "".join([call.arguments for call in parts]),
        )
        for index, parts in fragments.items()
    )


class Event(NamedTuple):
    """One encoded event. `data` is JSON.

    `token_ids` is a JSON list, or the number of tokens if the ids are not known, and `cursor` is that of a delta, in
    JSON; clients never receive either.
    """

    seq: int
    type: EventType
    data: bytes
    token_ids: bytes = b""
    cursor: bytes = b""

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
        """Decode the delta of a `DELTA` event, without log probabilities: these are read from `payload`."""
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
            stop_reason=payload.get("stop_reason"),
            prompt_tokens=payload.get("prompt_tokens"),
            opaque=decode_all(payload.get("opaque", ())),
            cursor=orjson.loads(self.cursor) if self.cursor else None,
            refused=payload.get("refused", False),
        )


def parse_line(line: bytes) -> Event:
    """Parse a `<seq> <type> <json>` line."""
    seq, kind, data = line.split(b" ", 2)
    return Event(int(seq), _TYPES.get(kind) or EventType(kind.decode()), data)


async def archive(events: Iterable[Event]) -> bytes:
    """Encode the public events of a finished log as lines, for the job's row."""
    lines = []
    slice_ = TimeSlice()
    for item in events:
        if item.type is not EventType.UPSTREAM:
            lines.append(item.line())
        if slice_.over:
            await slice_.give_way()
    return b"\n".join(lines)


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
    tokens = kept_json(delta.token_ids or delta.unidentified) if delta.tokens else b""
    cursor = b"" if delta.cursor is None else kept_json(delta.cursor)
    return Event(seq, EventType.DELTA, kept_json(payload), tokens, cursor)


def _optional_fields(delta: Delta) -> dict[str, Any]:
    payload: dict[str, Any] = {}
    if delta.reasoning:
        payload["reasoning"] = delta.reasoning
    if delta.tool_calls:
        payload["tool_calls"] = [
            {name: value for name, value in asdict(call).items() if value is not None} for call in delta.tool_calls
        ]
    if delta.logprobs:
        payload["logprobs"] = _encoded_list(delta.logprobs)
    if delta.stop_reason is not None:
        payload["stop_reason"] = delta.stop_reason
    if delta.prompt_tokens is not None:
        payload["prompt_tokens"] = delta.prompt_tokens
    if delta.prompt_logprobs:
        payload["prompt_logprobs"] = _encoded_list(delta.prompt_logprobs)
    if delta.opaque:
        payload["opaque"] = [part.encoded() for part in delta.opaque]
    if delta.refused:
        payload["refused"] = True
    return payload


def _encoded_list(items: Sequence[bytes]) -> orjson.Fragment:
    return orjson.Fragment(b"[%b]" % b",".join(items))


def event(seq: int, kind: EventType, payload: dict[str, Any]) -> Event:
    return Event(seq, kind, kept_json(payload))


SEQ_PER_ATTEMPT = 1_000_000
# The log of no leader has a number as high: its readers, and those of its followers, have received lower ones.
SEQ_AFTER_LEADER = 1_000_000_000_000


def seq_before(attempt: int, *, after_leader: bool = False) -> int:
    """The `seq` after which an attempt starts if the log before it was lost; no reader has received a higher one.

    `after_leader`: readers have received events of a job that this one follows or followed.
    """
    return (attempt - 1) * SEQ_PER_ATTEMPT + after_leader * SEQ_AFTER_LEADER
