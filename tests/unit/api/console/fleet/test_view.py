"""What the page of models and workers says about them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from api.admin.fleet.store import WorkerInfo
from api.console.data.overview import Live, QueueState, Rescue
from api.console.fleet.store import RunningJobs
from api.console.fleet.view import FleetView, build_view, entry_text
from shared.config.models.loader import Registry
from shared.config.models.simulated import SimulatedModel
from shared.domain.engine_info import EngineInfo

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
SPEC = SimulatedModel(name="m", engine="simulated", slots=4)
REGISTRY = Registry({"m": SPEC})


def worker(name: str = "w", **values: Any) -> WorkerInfo:
    defaults: dict[str, Any] = {
        "id": name,
        "model": "m",
        "state": "ready",
        "state_since": NOW - timedelta(hours=1),
        "alive": True,
        "slots": 4,
        "running": 0,
        "waiting": 0,
        "kv_cache_usage": None,
        "tokens_per_s": None,
        "started_at": NOW - timedelta(hours=1),
        "lease_expires_at": NOW + timedelta(seconds=5),
        "version": "0.1.0",
        "options": SPEC.summary,
        "engine_info": None,
        "breaker_since": None,
        "breaker_reason": None,
        "last_error": None,
        "drain_requested_at": None,
    }
    return WorkerInfo(**{**defaults, **values})


def view(
    *workers: WorkerInfo, queues: tuple[QueueState, ...] = (), rescues: tuple[Rescue, ...] = (), operator: bool = True
) -> FleetView:
    live = Live(NOW, [QueueState("m", True), QueueState("m", False), *queues], workers, rescues)
    running = {"w": RunningJobs(2, 1)}
    return build_view(live, running, {}, REGISTRY, is_operator=operator)


@pytest.mark.parametrize(
    ("values", "text", "kind", "doing"),
    [
        ({}, "ready", "good", ""),
        ({"state": "loading", "state_since": NOW - timedelta(seconds=42)}, "loading", "info", "for 42 s"),
        ({"state": "warming", "state_since": NOW - timedelta(seconds=2)}, "warming up", "info", "for 2.0 s"),
        ({"state": "restarting", "state_since": None}, "restarting", "near", "for 1 h"),
        ({"drain_requested_at": NOW - timedelta(seconds=30)}, "draining", "near", "for 30 s"),
        ({"breaker_since": NOW - timedelta(seconds=20)}, "circuit open", "bad", "for 20 s"),
        ({"state": "a state of a newer version"}, "a state of a newer version", "plain", "for 1 h"),
    ],
)
def test_the_state_of_a_worker(values: dict[str, Any], text: str, kind: str, doing: str) -> None:
    (line,) = view(worker(**values)).models[0].workers
    assert (line.state.text, line.state.kind, line.doing) == (text, kind, doing)
    assert line.can_drain is ("drain_requested_at" not in values)


def test_slots_are_those_of_the_running_jobs() -> None:
    (card,) = view(worker(), worker("idle")).models
    assert [(line.interactive, line.batch, line.slots) for line in card.workers] == [(2, 1, 4), (0, 0, 4)]
    assert (card.busy, card.slots) == (3, 8)


def test_why_an_engine_failed_is_for_operators() -> None:
    failed = worker(state="restarting", last_error="CUDA out of memory")
    assert view(failed).models[0].workers[0].problem == "CUDA out of memory"
    (line,) = view(failed, operator=False).models[0].workers
    assert (line.problem, line.options, line.can_drain) == (None, "", False)


def test_what_an_engine_runs_with_is_for_operators() -> None:
    running = worker(engine_info=EngineInfo(engine="vLLM 0.32.0", dtype="bfloat16", start="fast"))
    (line,) = view(running).models[0].workers
    assert (line.options, line.engine_info) == ("bfloat16 · eager", running.engine_info)
    (line,) = view(running, operator=False).models[0].workers
    assert (line.options, line.engine_info) == ("", None)


def test_the_line_of_an_engine_that_runs_no_model_has_the_options_of_its_entry() -> None:
    running = worker(engine_info=EngineInfo(engine="simulated", slots=4, context=8192))
    assert view(running).models[0].workers[0].options == "slots 4"


def test_an_error_of_the_past_is_not_shown_on_a_worker_that_is_ready() -> None:
    assert view(worker(last_error="CUDA out of memory")).models[0].workers[0].problem is None


def test_a_worker_with_an_older_entry_is_marked() -> None:
    older = {**SPEC.summary, "slots": 9}
    lines = view(worker(), worker("old", options=older), worker("unknown", options={})).models[0].workers
    assert [line.is_outdated for line in lines] == [False, True, False]


def test_a_model_without_a_worker() -> None:
    assert [note.text for note in view().models[0].notes] == ["no worker"]
    assert view().models[0].notes[0].kind == "plain"
    waiting = Live(NOW, [QueueState("m", True, waiting=1)], [], [])
    (card,) = build_view(waiting, {}, {}, REGISTRY, is_operator=True).models
    assert card.notes[0].kind == "bad"


def test_a_model_that_is_not_in_the_file_any_more() -> None:
    cards = view(worker(model="gone"), queues=(QueueState("queued", True, waiting=1),)).models
    assert {card.name: card.engine for card in cards} == {
        "m": "simulated",
        "gone": "not in models.yaml",
        "queued": "not in models.yaml",
    }
    assert not any(card.can_pause for card in cards if card.name != "m")


def test_a_paused_queue_can_be_resumed_even_without_an_entry() -> None:
    cards = view(queues=(QueueState("gone", True, paused_at=NOW),)).models
    assert [(card.name, card.can_pause) for card in cards] == [("m", True), ("gone", True)]
    assert [note.text for note in cards[1].notes] == ["paused", "no worker"]


def test_what_became_of_workers() -> None:
    lost = worker("lost", alive=False, lease_expires_at=NOW - timedelta(minutes=3), last_error="killed")
    drained = worker("done", alive=False, state="drained", state_since=NOW - timedelta(minutes=1))
    rescue = Rescue("job_1", 1, "m", 1, "lost", "worker_lost", NOW, 5, NOW, "w", "completed")
    unfinished = Rescue("job_2", 1, "m", 1, "lost", "worker_lost", NOW, 5, None, None, "queued")
    first, second = view(lost, drained, rescues=(rescue, unfinished)).ended
    assert (first.id, first.state.text, first.why) == ("done", "drained", "finished its jobs")
    assert (second.id, second.state.text) == ("lost", "lost")
    assert second.why == "killed; no heartbeat while ready; 1 of 2 jobs continued elsewhere"
    assert view(lost, operator=False).ended[0].why == "no heartbeat while ready"


def test_the_summary() -> None:
    assert view(worker()).summary == "1 model · 1 worker · 3 of 4 slots busy"


def test_the_entry_has_no_secrets() -> None:
    spec = SimulatedModel.model_validate({"name": "s", "engine": "simulated", "slots": 3})
    assert '"slots": 3' in (entry_text(Registry({"s": spec}), "s") or "")
    assert entry_text(REGISTRY, "none") is None
