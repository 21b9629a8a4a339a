"""Celery's events, and what Flower keeps of them, take bounded memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from celery import Celery
from flower.events import EventsState

from workers.consumer.monitoring import MAX_BUFFERED, bound_event_buffer
from workers.flower import ExpectedHosts


class _Refusing:
    """A producer whose server refuses every event."""

    def publish(self, *_args: Any, **_options: Any) -> None:
        raise ConnectionError("refused")


def test_unsent_events_are_kept_up_to_a_limit() -> None:
    app = Celery(broker="memory://")
    bound_event_buffer(app)
    dispatcher = app.events.Dispatcher(app.connection_for_write(), enabled=False)
    dispatcher.enabled, dispatcher.producer = True, _Refusing()
    for number in range(3 * MAX_BUFFERED):
        dispatcher.send("task-succeeded", uuid=str(number))
    assert len(dispatcher._outbound_buffer) == MAX_BUFFERED
    successor = app.events.Dispatcher(app.connection_for_write(), enabled=False)
    successor.extend_buffer(dispatcher)
    assert [event["uuid"] for event, _ in successor._outbound_buffer][-1] == str(3 * MAX_BUFFERED - 1)


def test_flower_keeps_nothing_of_workers_that_are_no_longer_among_the_latest() -> None:
    state = EventsState(max_workers_in_memory=10, max_tasks_in_memory=10)
    details: dict[str, Any] = {}
    flower = ExpectedHosts.__new__(ExpectedHosts)
    flower.events, flower.inspector = SimpleNamespace(state=state), SimpleNamespace(workers=details)
    for number in range(100):
        name = f"sim-{number}@host"
        details[name] = {"stats": {}}
        heartbeat = {
            "type": "worker-heartbeat",
            "hostname": name,
            "timestamp": 1.0,
            "local_received": 1.0,
            "clock": number,
        }
        state.event(heartbeat | {"active": 0, "pid": 1, "utcoffset": 0})
    flower.forget_workers()
    assert len(state.workers) == 10
    assert set(state.counter) == set(details) == set(state.workers)
    online = {labels[0] for labels in state.metrics.worker_online._metrics}
    assert online == set(state.workers)
