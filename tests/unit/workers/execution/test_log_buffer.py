"""How the buffer of a job's log turns deltas into events."""

from __future__ import annotations

from shared.domain.events import Delta, EventType, merge_deltas
from tests.support.metrics import worker_metrics
from workers.execution.log_writer import EVENT_BYTES, LogBuffer

JOB = "job_1"


def test_the_deltas_of_one_flush_become_one_event_for_each_choice() -> None:
    log = LogBuffer(JOB, 1, worker_metrics())
    for text in ("a", "b"):
        log.delta(Delta(0, text, (1,)))
    log.delta(Delta(1, "z", (2,)))
    log.seal()
    assert [item.delta() for item in log.events] == [Delta(0, "ab", (1, 1)), Delta(1, "z", (2,))]


def test_half_a_character_waits_for_the_rest() -> None:
    log = LogBuffer(JOB, 1, worker_metrics())
    log.delta(Delta(0, "", (1,)))
    log.seal()
    assert log.events == []
    log.delta(Delta(0, "🌊", (2,)))
    log.seal()
    assert [item.delta() for item in log.events] == [Delta(0, "🌊", (1, 2))]


def test_large_deltas_become_several_events() -> None:
    """As they are after an outage of Redis, or for the log probabilities of a prompt."""
    log = LogBuffer(JOB, 1, worker_metrics())
    entry = b"[" + b" " * (EVENT_BYTES // 4) + b"0]"
    deltas = [
        Delta(0, "the prompt", logprobs=(entry,)),
        *[Delta(0, logprobs=(entry,))] * 8,
        *[Delta(0, "", (position,)) for position in range(2)],
        *[Delta(0, "🌊", (position,), logprobs=(entry,)) for position in range(2, 10)],
        *[Delta(0, "", (position,)) for position in range(10, 12)],
    ]
    for delta in deltas:
        log.delta(delta)
    log.seal()
    assert len(log.events) > 4
    assert max(len(item.data) for item in log.events) < 2 * EVENT_BYTES
    merged = merge_deltas([item.delta() for item in log.events])
    assert (merged.text, merged.token_ids) == ("the prompt" + "🌊" * 8, tuple(range(12)))
    assert sum(len(item.payload().get("logprobs", ())) for item in log.events) == 9 + 8


def test_unwritten_events_are_those_after_the_confirmed_one() -> None:
    log = LogBuffer(JOB, 2, worker_metrics())
    log.resume_after([], 1_000_000)
    log.event(EventType.RESTARTED, {})
    log.event(EventType.STARTED, {})
    assert [item.seq for item in log.unwritten] == [1_000_001, 1_000_002]
    log.written = 1_000_001
    assert [item.seq for item in log.unwritten] == [1_000_002]
