"""The events of a job's log: one engine-neutral schema that every face of the API is formatted from.

An event is encoded once, by whoever makes it, and the same bytes go to the log, to readers and into the
row's archive. `seq` numbers a job's events upwards from 1; a reader's cursor is the last one it has seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import orjson

from shared.domain.job import JobStatus


class EventType(StrEnum):
    """What happened. The last five end the log and are named after the job's terminal status.

    `QUEUED` is never in a log: readers are told it while a job waits, with its place.
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


_TERMINAL = frozenset(EventType(status.value) for status in JobStatus if status.terminal)
# As bytes, for what is done for each event.
_NAMES = {kind: kind.value.encode() for kind in EventType}
_TYPES = {name: kind for kind, name in _NAMES.items()}


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A fragment of a tool call: the first of a call has its id and name; arguments grow, as JSON text."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class Delta:
    """What one choice gained: text, reasoning, fragments of tool calls. `token_ids` made it; they stay inside, for
    the next worker.

    An engine that is not told the ids counts the tokens alone, as `unnamed`. `logprobs` has an entry for each token:
    `{"token", "logprob", "bytes", "top": [{"token", "logprob", "bytes"}, ...]}`.

    `prompt_tokens` is how long the prompt is, with a job's first delta, where it is known by then. `prompt_logprobs`
    comes with the first choice's first: an entry for each token of the prompt, None or what is likely in its place,
    `{token id as text: {"logprob", "rank", "decoded_token"}, ...}`.
    """

    index: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    unnamed: int = 0
    reasoning: str = ""
    tool_calls: tuple[CallDelta, ...] = ()
    logprobs: tuple[dict[str, Any], ...] = ()
    stop_reason: int | str | None = None
    prompt_tokens: int | None = None
    prompt_logprobs: list[dict[str, Any] | None] | None = None

    @property
    def tokens(self) -> int:
        """How many tokens made it."""
        return len(self.token_ids) + self.unnamed

    @property
    def plain(self) -> bool:
        """Whether it is text and an end, and nothing else."""
        return (
            not (self.reasoning or self.tool_calls or self.logprobs)
            and self.stop_reason is None
            and self.prompt_tokens is None
            and self.prompt_logprobs is None
        )

    @property
    def shown(self) -> bool:
        """Whether there is something in it for a reader: tokens that made nothing yet wait for the rest."""
        return bool(self.text or self.finish_reason or self.reasoning or self.tool_calls)

    def merged(self, later: Delta) -> Delta:
        """This delta and the one after it, of the same choice, as one."""
        return Delta(
            self.index,
            self.text + later.text,
            self.token_ids + later.token_ids,
            later.finish_reason or self.finish_reason,
            self.unnamed + later.unnamed,
            self.reasoning + later.reasoning,
            joined_calls(self.tool_calls + later.tool_calls) if self.tool_calls or later.tool_calls else (),
            self.logprobs + later.logprobs,
            self.stop_reason if later.stop_reason is None else later.stop_reason,
            later.prompt_tokens if self.prompt_tokens is None else self.prompt_tokens,
            later.prompt_logprobs if self.prompt_logprobs is None else self.prompt_logprobs,
        )


def joined_calls(calls: Iterable[CallDelta]) -> tuple[CallDelta, ...]:
    """Fragments of the same call as one, in the calls' order."""
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
    """One event as it travels: `data` is JSON; `token_ids` is JSON too, a list, or a number where the ids are not
    known, and is never shown to a client."""

    seq: int
    type: EventType
    data: bytes
    token_ids: bytes = b""

    @property
    def name(self) -> bytes:
        """The type as it is written."""
        return _NAMES[self.type]

    def line(self) -> bytes:
        """`<seq> <type> <json>`: a line of a live message and of the archive."""
        return b"%d %b %b" % (self.seq, _NAMES[self.type], self.data)

    def payload(self) -> dict[str, Any]:
        result: dict[str, Any] = orjson.loads(self.data)
        return result

    def delta(self) -> Delta:
        """The delta that a `DELTA` event carries."""
        payload = self.payload()
        tokens = orjson.loads(self.token_ids) if self.token_ids else []
        ids, unnamed = ((), tokens) if isinstance(tokens, int) else (tuple(tokens), 0)
        return Delta(
            payload["index"],
            payload["text"],
            ids,
            payload.get("finish_reason"),
            unnamed,
            payload.get("reasoning", ""),
            tuple(CallDelta(**call) for call in payload.get("tool_calls", ())),
            tuple(payload.get("logprobs", ())),
            payload.get("stop_reason"),
            payload.get("prompt_tokens"),
            payload.get("prompt_logprobs"),
        )


def parse_line(line: bytes) -> Event:
    """The event of a `<seq> <type> <json>` line."""
    seq, kind, data = line.split(b" ", 2)
    return Event(int(seq), _TYPES[kind], data)


def archive(events: Iterable[Event]) -> str:
    """A finished log as lines, for the row."""
    return b"\n".join(item.line() for item in events).decode()


def parse_archive(text: str) -> list[Event]:
    return [parse_line(line) for line in text.encode().split(b"\n") if line]


def delta_event(seq: int, delta: Delta, *, counted: bool = False) -> Event:
    """A delta as an event; `counted` tells readers its number of tokens."""
    payload: dict[str, Any] = {"index": delta.index, "text": delta.text}
    if delta.finish_reason is not None:
        payload["finish_reason"] = delta.finish_reason
    if not delta.plain:
        payload |= _beside_text(delta)
    if counted:
        payload["tokens"] = delta.tokens
    tokens = orjson.dumps(delta.token_ids or delta.unnamed) if delta.tokens else b""
    return Event(seq, EventType.DELTA, orjson.dumps(payload), tokens)


def _beside_text(delta: Delta) -> dict[str, Any]:
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
    """After which number an attempt begins where the log before it is lost: above all that a reader may have seen."""
    return (attempt - 1) * SEQ_PER_ATTEMPT
