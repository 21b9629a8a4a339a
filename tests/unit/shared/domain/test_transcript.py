"""The transcript of a log: which attempts generated it."""

from __future__ import annotations

from typing import Any

from shared.domain.events import Delta, Event, EventType, delta_event, event
from shared.domain.transcript import fingerprint_by_attempt
from tests.support.transcripts import transcript_of


def started(attempt: int, fingerprint: str | None) -> Event:
    payload: dict[str, Any] = {"attempt": attempt, "worker": "w"}
    if fingerprint is not None:
        payload["fingerprint"] = fingerprint
    return event(1, EventType.STARTED, payload)


TEXT = delta_event(1, Delta(0, "a", (1,)))
RESTARTED = event(1, EventType.RESTARTED, {"attempt": 2})


def test_fingerprints_of_the_attempts_that_generated_text() -> None:
    def fingerprints(*events: Event) -> set[str | None]:
        return transcript_of(events).fingerprints

    assert fingerprints() == set()
    assert fingerprints(started(1, "a")) == set()
    assert fingerprints(started(1, "a"), TEXT, started(2, "b")) == {"a"}
    assert fingerprints(started(1, "a"), TEXT, started(2, "b"), TEXT) == {"a", "b"}
    assert fingerprints(started(1, "a"), TEXT, RESTARTED, started(2, "b"), TEXT) == {"b"}
    assert fingerprints(started(1, None), TEXT) == {None}, "by a worker that did not report one"


def test_the_fingerprint_of_each_attempt() -> None:
    events = [started(1, "a"), TEXT, RESTARTED, started(2, None), TEXT, started(3, "b")]
    assert fingerprint_by_attempt(events) == {1: "a", 2: None, 3: "b"}
