"""The transcript of a job: the choices that its deltas add up to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from shared.domain.events import CallDelta, Delta, Event, EventType, UpstreamState, joined_calls
from shared.domain.job import Choice, ToolCall
from shared.domain.ledger import Run
from shared.domain.opaque import OpaquePart
from shared.runtime.time_slice import TimeSlice


def fingerprint_by_attempt(events: Iterable[Event]) -> dict[int, str | None]:
    """The fingerprint that each attempt reported in its `STARTED` event."""
    started = (item.payload() for item in events if item.type is EventType.STARTED)
    return {payload["attempt"]: payload.get("fingerprint") for payload in started}


class Transcript:
    """Collects the deltas of a job, and joins them to choices.

    Log probabilities are not collected: they stay in the log's events, and `encode_output` reads them from there.
    """

    def __init__(self, choices: int) -> None:
        self._choices = [_Parts(index) for index in range(choices)]
        # The fingerprints of the attempts that generated the deltas; None for an attempt without one.
        self.fingerprints: set[str | None] = set()
        # The attempts of the job that the log has, by their numbers. Known only after `of`.
        self.runs: dict[int, Run] = {}
        # The upstream's request that generates the deltas, and its position after the last of them.
        self.upstream: UpstreamState | None = None
        self.cursor: int | str | None = None

    @classmethod
    async def of(cls, events: Iterable[Event], choices: int, *, model: str | None = None) -> Transcript:
        """Build the transcript of a log. A delta belongs to the attempt of the preceding `STARTED` event.

        `model`: the job's model now. The log may be that of another one, which the job has left without output; then
        an upstream's request in it is not the job's any more.
        """
        transcript = cls(choices)
        runs = transcript.runs
        attempt, fingerprint, started_by = 0, None, None
        run = Run()
        slice_ = TimeSlice()
        for item in events:
            if item.type is EventType.DELTA:
                delta = item.delta()
                transcript.add(delta)
                transcript.fingerprints.add(fingerprint)
                run.tokens += delta.tokens
                run.prompt_tokens = delta.prompt_tokens or run.prompt_tokens
            elif item.type is EventType.STARTED:
                payload = item.payload()
                if payload["attempt"] <= attempt:  # the log began with that of another job
                    runs.clear()
                attempt, fingerprint = payload["attempt"], payload.get("fingerprint")
                started_by = payload.get("model")
                run = runs[attempt] = Run(prior=transcript.tokens, resumed=transcript.upstream is not None)
            elif item.type is EventType.RESTARTED:
                transcript.clear()
                if item.payload().get("attempt") == attempt:
                    run.prior, run.resumed = 0, False
            elif item.type is EventType.UPSTREAM:
                transcript.upstream = UpstreamState.of(item)
                run.resumed = False
            if slice_.over:
                await slice_.give_way()
        if model is not None and started_by not in (None, model):
            transcript.clear()
        return transcript

    def clear(self) -> None:
        self._choices = [_Parts(parts.index) for parts in self._choices]
        self.fingerprints = set()
        self.upstream = self.cursor = None

    def add(self, delta: Delta) -> None:
        while delta.index >= len(self._choices):
            self._choices.append(_Parts(len(self._choices)))
        self._choices[delta.index].add(delta)
        if delta.cursor is not None:
            self.cursor = delta.cursor

    def placed(self, delta: Delta) -> tuple[OpaquePart, ...]:
        """The opaque parts of the choice's next delta, with their places: they follow the delta's other content."""
        parts = self._choices[delta.index] if delta.index < len(self._choices) else _Parts(delta.index)
        return parts.placed(delta)

    @property
    def tokens(self) -> int:
        return sum(parts.tokens for parts in self._choices)

    @property
    def empty(self) -> bool:
        return not any(parts.begun for parts in self._choices)

    @property
    def finish_reasons(self) -> list[str | None]:
        """The finish reason of each choice."""
        return [parts.finish_reason for parts in self._choices]

    def deltas(self) -> list[Delta]:
        """The deltas, merged to one for each choice that has any."""
        return [parts.delta() for parts in self._choices if parts.begun]

    def choices(self) -> tuple[Choice, ...]:
        return tuple(parts.choice() for parts in self._choices)


class _Parts:
    """The parts of one choice."""

    __slots__ = (
        "begun", "calls", "finish_reason", "index", "opaque", "reasoning", "refused", "stop_reason", "texts",
        "token_ids", "tokens",
    )  # fmt: skip

    def __init__(self, index: int) -> None:
        self.index = index
        self.begun = False
        self.tokens = 0
        self.token_ids: list[int] = []
        self.texts: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[CallDelta] = []
        self.opaque: list[OpaquePart] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.refused = False

    def add(self, delta: Delta) -> None:
        self.begun = True
        self.tokens += len(delta.token_ids) + delta.unidentified
        self.token_ids += delta.token_ids
        self.texts.append(delta.text)
        if delta.finish_reason:
            self.finish_reason = delta.finish_reason
        if not delta.plain:
            self.reasoning.append(delta.reasoning)
            self.calls += delta.tool_calls
            self.opaque += delta.opaque
            self.refused = self.refused or delta.refused
            if delta.stop_reason is not None:
                self.stop_reason = delta.stop_reason

    def placed(self, delta: Delta) -> tuple[OpaquePart, ...]:
        reasoning = sum(map(len, self.reasoning)) + len(delta.reasoning)
        text = sum(map(len, self.texts)) + len(delta.text)
        calls = len({call.index for call in (*self.calls, *delta.tool_calls)})
        return tuple(part.at(reasoning=reasoning, text=text, calls=calls) for part in delta.opaque)

    def delta(self) -> Delta:
        return Delta(
            self.index,
            "".join(self.texts),
            tuple(self.token_ids),
            self.finish_reason,
            self.tokens - len(self.token_ids),
            "".join(self.reasoning),
            joined_calls(self.calls),
            stop_reason=self.stop_reason,
            opaque=tuple(self.opaque),
            refused=self.refused,
        )

    def choice(self) -> Choice:
        delta = self.delta()
        return Choice(
            self.index,
            delta.text,
            delta.finish_reason,
            delta.reasoning or None,
            tuple(ToolCall(call.id or "", call.name or "", call.arguments) for call in delta.tool_calls),
            stop_reason=delta.stop_reason,
            opaque=delta.opaque,
            refused=delta.refused,
        )


async def encode_output(choices: Iterable[Choice], events: Iterable[Event]) -> bytes:
    """Encode choices as JSON for the job's row, with the log probabilities from the events of their log."""
    logprobs: dict[int, list[bytes]] = {}
    prompt_logprobs: dict[int, list[bytes]] = {}
    slice_ = TimeSlice()
    for item in events:
        if item.type is EventType.RESTARTED:
            logprobs, prompt_logprobs = {}, {}
        elif item.type is EventType.DELTA and b'logprobs":' in item.data:
            payload = item.payload()
            for name, found in (("logprobs", logprobs), ("prompt_logprobs", prompt_logprobs)):
                if entries := payload.get(name):
                    found.setdefault(payload["index"], []).append(orjson.dumps(entries)[1:-1])
        if slice_.over:
            await slice_.give_way()
    encoded = []
    for choice in choices:
        stored: dict[str, Any] = choice.stored()
        for name, found in (("logprobs", logprobs), ("prompt_logprobs", prompt_logprobs)):
            if entries := found.get(choice.index):
                # Each of these copies megabytes.
                joined = b",".join(entries)
                await slice_.give_way()
                stored[name] = orjson.Fragment(b"[%b]" % joined)
                await slice_.give_way()
        encoded.append(orjson.dumps(stored))
        await slice_.give_way()
    return b"[%b]" % b",".join(encoded)
