"""The transcript of a job: the choices that its deltas add up to."""

from __future__ import annotations

from collections.abc import Iterable

from shared.domain.events import Delta, Event, EventType, joined_calls
from shared.domain.job import Choice, ToolCall


def tokens_by_attempt(events: Iterable[Event]) -> dict[int, int]:
    """Count the tokens of each attempt. A delta belongs to the attempt of the preceding `STARTED` event."""
    tokens: dict[int, int] = {}
    attempt = 0
    for item in events:
        if item.type is EventType.STARTED:
            attempt = item.payload()["attempt"]
        elif item.type is EventType.DELTA:
            tokens[attempt] = tokens.get(attempt, 0) + item.delta().tokens
    return tokens


def fingerprint_by_attempt(events: Iterable[Event]) -> dict[int, str | None]:
    """The fingerprint that each attempt reported in its `STARTED` event."""
    started = (item.payload() for item in events if item.type is EventType.STARTED)
    return {payload["attempt"]: payload.get("fingerprint") for payload in started}


class Transcript:
    """Collects the deltas of a job, and joins them to choices."""

    def __init__(self, choices: int) -> None:
        self._choices = choices
        self.deltas: list[Delta] = []
        # The fingerprints of the attempts that generated the deltas; None for an attempt without one.
        self.fingerprints: set[str | None] = set()

    @classmethod
    def of(cls, events: Iterable[Event], choices: int) -> Transcript:
        transcript = cls(choices)
        fingerprint: str | None = None
        for item in events:
            if item.type is EventType.DELTA:
                transcript.add(item.delta())
                transcript.fingerprints.add(fingerprint)
            elif item.type is EventType.STARTED:
                fingerprint = item.payload().get("fingerprint")
            elif item.type is EventType.RESTARTED:
                transcript.clear()
        return transcript

    def clear(self) -> None:
        self.deltas = []
        self.fingerprints = set()

    def add(self, delta: Delta) -> None:
        self.deltas.append(delta)

    @property
    def tokens(self) -> int:
        return sum(delta.tokens for delta in self.deltas)

    def choices(self) -> tuple[Choice, ...]:
        count = max([self._choices, *(delta.index + 1 for delta in self.deltas)])
        by_choice: list[list[Delta]] = [[] for _ in range(count)]
        for delta in self.deltas:
            by_choice[delta.index].append(delta)
        return tuple(_choice(index, deltas) for index, deltas in enumerate(by_choice))


def _choice(index: int, deltas: list[Delta]) -> Choice:
    calls = joined_calls(tuple(call for delta in deltas for call in delta.tool_calls))
    logprobs = [entry for delta in deltas for entry in delta.logprobs]
    return Choice(
        index,
        "".join(delta.text for delta in deltas),
        next((delta.finish_reason for delta in reversed(deltas) if delta.finish_reason), None),
        "".join(delta.reasoning for delta in deltas) or None,
        tuple(ToolCall(call.id or "", call.name or "", call.arguments) for call in calls),
        logprobs or None,
        next((delta.stop_reason for delta in reversed(deltas) if delta.stop_reason is not None), None),
        next((delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs is not None), None),
    )
