"""What the overview says about a snapshot."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from api.admin.fleet.store import WorkerInfo
from api.console.data.histogram import Percentiles
from api.console.data.overview import Bucket, Charts, Live, QueueState, Rescue
from api.console.overview.snapshot import Snapshot
from api.console.overview.view import OverviewView, build_view
from api.console.templates import render
from shared.config.models.loader import Registry, load_registry
from shared.domain.job import WorkerState
from tests.support.stack import write_models

NOW = datetime(2026, 11, 30, 14, 0, tzinfo=UTC)
START = NOW - timedelta(hours=1)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return load_registry(write_models(tmp_path / "models.yaml", [{"name": "m", "engine": "simulated"}]))


def worker(**values: Any) -> WorkerInfo:
    fields: dict[str, Any] = dict.fromkeys(WorkerInfo.__dataclass_fields__)
    fields |= {"id": "w1", "model": "m", "state": WorkerState.READY, "alive": True, "slots": 4, "running": 0}
    fields |= {"waiting": 0, "options": {}, "started_at": NOW - timedelta(days=1), "lease_expires_at": NOW}
    return WorkerInfo(**{**fields, **values})


def queue(*, interactive: bool = True, **values: Any) -> QueueState:
    return replace(QueueState("m", interactive), **values)


def rescue(worker: str, seconds_ago: float, *, project_id: int = 1, continued: bool = True) -> Rescue:
    lost_at = NOW - timedelta(seconds=seconds_ago)
    later = lost_at + timedelta(seconds=1.5) if continued else None
    return Rescue("job_1", project_id, "m", 1, worker, "worker_lost", lost_at, 5, later, "w2", "in_progress")


def view_of(
    registry: Registry,
    *,
    workers: list[WorkerInfo] | None = None,
    queues: list[QueueState] | None = None,
    rescues: list[Rescue] | None = None,
    project_id: int | None = None,
    **total: Any,
) -> OverviewView:
    bucket = Bucket(START, 3600, **total)
    live = Live(
        NOW,
        queues if queues is not None else [queue(), queue(interactive=False)],
        [worker()] if workers is None else workers,
        rescues or [],
    )
    snapshot = Snapshot("1h", Charts(START, NOW, None, [bucket], bucket), {}, live)
    view = build_view(snapshot, registry, project_id)
    for part in ("health", "stats", "chart", "events", "models"):
        render(f"overview/{part}.html", {"view": view})
    return view


def test_an_idle_installation_is_healthy(registry: Registry) -> None:
    view = view_of(registry)
    assert (view.health.text, view.reasons) == ("Healthy", ())
    assert [note.text for note in view.models[0].notes] == ["idle"]
    assert [stat.quantity.number for stat in view.stats] == ["–", "0", "0", "0"]
    assert view.events == []


def test_trends_leave_out_the_minute_that_has_not_ended(registry: Registry) -> None:
    starts = [NOW - timedelta(minutes=minutes) for minutes in (2, 1, 0)]
    buckets = [Bucket(start, seconds, tokens=600) for start, seconds in zip(starts, (60, 60, 4), strict=True)]
    charts = Charts(starts[0], NOW, None, buckets, Bucket(starts[0], 124))
    live = Live(NOW, [queue(), queue(interactive=False)], [worker()], [])
    view = build_view(Snapshot("1h", charts, {}, live), registry, None)
    assert [list(stat.trend) for stat in view.stats] == [[None, None], [10.0, 10.0], [None, None], [0.0, 0.0]]
    assert view.chart["x"] == [int(start.timestamp()) for start in starts], "the chart has what is known of it"


def test_an_installation_without_models_has_a_page(registry: Registry) -> None:
    assert view_of(registry, workers=[], queues=[]).models == []


def test_a_model_without_worker_is_well_until_jobs_wait(registry: Registry) -> None:
    scaled_to_zero = view_of(registry, workers=[])
    assert scaled_to_zero.health.text == "Healthy"
    assert [(note.text, note.kind) for note in scaled_to_zero.models[0].notes] == [("no worker", "plain")]
    waiting = view_of(registry, workers=[], queues=[queue(waiting=2, oldest_s=4.0), queue(interactive=False)])
    assert waiting.health.text == "Needs attention"
    assert waiting.reasons == ("m has waiting jobs and no worker",)
    assert waiting.models[0].notes[0].kind == "bad"


@pytest.mark.parametrize(
    ("changed", "note", "health"),
    [
        ({"state": WorkerState.LOADING}, "loading", "Degraded"),
        ({"breaker_since": NOW}, "upstream fails", "Degraded"),
        ({"kv_cache_usage": 0.83}, "KV 83 %", "Healthy"),
    ],
)
def test_the_state_of_workers_is_noted(registry: Registry, changed: dict[str, Any], note: str, health: str) -> None:
    view = view_of(registry, workers=[worker(**changed)])
    assert view.models[0].notes[0].text == note
    assert view.health.text == health


def test_slow_first_tokens_are_a_reason(registry: Registry) -> None:
    slow = view_of(registry, first_token=Percentiles(10, 100, 600, 900), ended={"completed": 10})
    assert slow.reasons == ["first tokens are above the target in the last hour"]
    assert (slow.stats[0].quantity, slow.stats[0].context) == (("600", "ms"), "p50 100 ms · p99 900 ms")
    times: dict[str, Any] = {
        "first_token": Percentiles(10, 100, 60_000, 60_000),
        "wait": Percentiles(10, 5, 54_000, 54_000),
    }
    waited = view_of(registry, **times, ended={"completed": 10})
    assert waited.reasons == ["first tokens are above the target in the last hour: jobs waited 54 s for a worker"]
    fast = view_of(registry, first_token=Percentiles(10, 100, 400, 900), ended={"completed": 10})
    assert fast.health.text == "Healthy"


def test_failures_are_counted_with_their_causes(registry: Registry) -> None:
    ended, errors = {"completed": 190, "failed": 9, "expired": 1}, {"engine_error": 2, "upstream_error": 7}
    stat = view_of(registry, ended=ended, errors=errors).stats[3]
    assert stat.quantity == ("10", "jobs")
    assert stat.context == "upstream_error 7 · engine_error 2"
    assert stat.badge is not None
    assert (stat.badge.text, stat.badge.kind) == ("5.0 %", "bad")
    assert list(stat.trend) == [10.0]


def test_cancelled_jobs_have_not_failed(registry: Registry) -> None:
    stat = view_of(registry, ended={"completed": 3, "cancelled": 1}, errors={"cancelled": 1}).stats[3]
    assert (stat.quantity, stat.context, list(stat.trend)) == (("0", "jobs"), "of 4 jobs", [0.0])


def test_a_count_that_was_cut_says_so(registry: Registry) -> None:
    queues = [queue(waiting=10_000, capped=True, oldest_s=3.0), queue(interactive=False, waiting=7)]
    stat = view_of(registry, queues=queues).stats[2]
    assert stat.quantity == ("10,000+", "jobs")
    assert stat.context == "oldest 3.0 s · batch 7 behind"


def test_the_jobs_of_one_lost_worker_are_one_event(registry: Registry) -> None:
    lost = worker(id="w9", alive=False, lease_expires_at=NOW - timedelta(seconds=600))
    rescues = [rescue("w9", 600 - number / 10) for number in range(3)] + [rescue("w8", 60, continued=False)]
    view = view_of(registry, workers=[worker(), lost], rescues=rescues)
    assert [event.text for event in view.events] == [
        "w8 went silent; 0 of 1 job continued so far",
        "w9 went silent; 3 jobs continued within 1.5 s after this was noticed",
    ]
    marks = view.chart["marks"]
    assert isinstance(marks, list)
    assert [mark["text"] for mark in marks] == [event.text for event in view.events]


def test_members_see_rescues_of_their_project_only(registry: Registry) -> None:
    rescues = [rescue("w9", 600, project_id=1), rescue("w8", 60, project_id=2)]
    assert [event.text for event in view_of(registry, rescues=rescues, project_id=2).events] == [
        "w8 went silent; 1 job continued within 1.5 s after this was noticed"
    ]


def test_members_do_not_see_why_an_upstream_fails(registry: Registry) -> None:
    broken = [worker(breaker_since=NOW, breaker_reason="401 for our key")]
    assert view_of(registry, workers=broken).events[0].text == "w1 of m lets no jobs through: 401 for our key"
    assert view_of(registry, workers=broken, project_id=1).events[0].text == "w1 of m lets no jobs through"


def test_texts_of_upstreams_are_escaped(registry: Registry) -> None:
    reason = '<script>alert("x")</script>'
    view = view_of(registry, workers=[worker(breaker_since=NOW, breaker_reason=reason)])
    for part in ("events", "chart", "models"):
        assert "<script>" not in render(f"overview/{part}.html", {"view": view})
