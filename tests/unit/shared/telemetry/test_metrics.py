"""Metrics: bounded labels, buckets that resolve the goals, names and units as Prometheus's users expect them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sse_starlette.sse import SendTimeoutError
from starlette.types import Message, Receive, Scope, Send

from api.http.middleware.metrics import MetricsMiddleware
from shared.domain.job import Failure, Job, JobStatus, Usage, new_job_id
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.result import JobResult
from shared.telemetry import metrics
from shared.telemetry.instruments import DEFINITIONS, Across, Exporter, WeightedHistogram, registry
from shared.telemetry.scrape_targets import scrape_target
from workers.execution.token_metrics import TokenMetrics

LABELS = {
    "code", "at", "kind", "method", "model", "outcome", "priority", "reason", "route", "state", "status", "write",
}  # fmt: skip
NOBODY = "somebody's invention"


def samples(exporter: Exporter) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All that a process of this kind shows, by name and labels."""
    text = generate_latest(registry(exporter)).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def model() -> Iterator[str]:
    metrics.declare_models(Exporter.WORKER, ["declared"])
    yield "declared"
    metrics._declared.discard("declared")


def test_names_and_units() -> None:
    names = [definition.name for definition in DEFINITIONS]
    assert len(names) == len(set(names))
    for definition in DEFINITIONS:
        assert re.fullmatch(r"headrace_[a-z_]+", definition.name)
        assert definition.name.endswith("_total") == (definition.kind == "counter"), definition.name
        if definition.kind == "histogram":
            assert definition.name.endswith("_seconds"), definition.name
        assert not re.search(r"_(ms|milliseconds|minutes|kb|mb|percent)(_|$)", definition.name)
        assert definition.exporters
        assert definition.what.endswith("."), definition.name


def test_labels_are_few_and_bounded() -> None:
    for definition in DEFINITIONS:
        for label in definition.labels:
            assert label.name in LABELS, f"{definition.name}: is {label.name} bounded? A job's id or a key never is"
            assert label.values or label.bound, f"{definition.name}: {label.name} does not say what bounds it"
        assert len(definition.labels) <= 3


def test_a_model_that_is_not_declared_is_no_label(model: str) -> None:
    assert metrics.model_label(model) == model
    assert metrics.model_label(NOBODY) == metrics.OTHER
    metrics.submitted(NOBODY, 4)
    TokenMetrics(NOBODY).record(0, 3, 1.0)
    shown = {**samples(Exporter.API), **samples(Exporter.WORKER)}
    assert not [key for key in shown if NOBODY in dict(key[1]).values()]


def test_priorities_are_the_bands_of_the_queue() -> None:
    assert [metrics.priority_label(priority) for priority in range(10)] == [
        *["0-2"] * 3, *["3-5"] * 3, *["6-8"] * 3, "9",
    ]  # fmt: skip


@pytest.mark.parametrize("buckets", [metrics.FIRST_TOKEN_BUCKETS, metrics.WAIT_BUCKETS])
@pytest.mark.parametrize("goal", [0.2, 0.5])
def test_buckets_resolve_the_goals(buckets: tuple[float, ...], goal: float) -> None:
    at = buckets.index(goal)
    assert goal / buckets[at - 1] <= 4 / 3 + 1e-9
    assert buckets[at + 1] / goal <= 1.5 + 1e-9


def test_a_value_at_an_edge_is_below_it() -> None:
    histogram = WeightedHistogram("h_seconds", "A histogram.", "model", (0.2, 0.5))
    child = histogram.labels("m")
    for value in (0.2, 0.2000001, 0.5, 0.6):
        child.observe(value)
    assert child.counts == [1, 2, 1]


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 5)), max_size=30))
def test_the_weighted_histogram_shows_what_prometheus_clients_would(values: list[tuple[float, int]]) -> None:
    ours = WeightedHistogram("h_seconds", "A histogram.", "model", metrics.INTER_TOKEN_BUCKETS)
    theirs = Histogram("h_seconds", "A histogram.", ["model"], buckets=metrics.INTER_TOKEN_BUCKETS, registry=None)
    child, other = ours.labels("m"), theirs.labels("m")
    for value, times in values:
        child.observe(value, times)
        for _ in range(times):
            other.observe(value)
    shown = []
    for collector in (ours, theirs):
        made = CollectorRegistry()
        made.register(collector)
        shown.append(
            [
                (sample.name, sample.labels, pytest.approx(sample.value))
                for family in text_string_to_metric_families(generate_latest(made).decode())
                for sample in family.samples
            ]
        )
    assert shown[0] == shown[1]


def test_tokens_that_go_together_share_their_gap(model: str) -> None:
    before = samples(Exporter.WORKER)
    meter = TokenMetrics(model)
    meter.record(0, 1, 100.0)
    meter.record(1, 1, 100.1)  # another choice has gaps of its own
    meter.record(0, 4, 100.08)  # 20 ms each
    meter.record(0, 0, 100.2)
    meter.record(0, 1, 100.28)
    after = samples(Exporter.WORKER)

    def grown(name: str, **labels: str) -> float:
        key = (name, tuple(sorted({"model": model, **labels}.items())))
        return after[key] - before.get(key, 0.0)

    assert grown("headrace_generated_tokens_total") == 7
    assert grown("headrace_inter_token_latency_seconds_count") == 5
    assert grown("headrace_inter_token_latency_seconds_sum") == pytest.approx(0.28)
    assert grown("headrace_inter_token_latency_seconds_bucket", le="0.02") == 4


def test_each_process_shows_its_own_and_no_other() -> None:
    for exporter in Exporter:
        shown = {family.name for family in registry(exporter).collect()}
        for definition in DEFINITIONS:
            if definition.collector is not None:
                name = definition.name.removesuffix("_total")
                assert (name in shown) == (exporter in definition.exporters), (exporter, name)


def test_counters_begin_at_zero(model: str) -> None:
    shown = samples(Exporter.WORKER)
    for status in JobStatus:
        labels = (("model", model), ("priority", "3-5"), ("status", status.value))
        assert (("headrace_jobs_finished_total", labels) in shown) == status.terminal
    assert ("headrace_rescues_total", (("model", model),)) in shown


def test_what_all_read_alike_is_a_max() -> None:
    by_name = {definition.name: definition for definition in DEFINITIONS}
    for name in ("jobs_waiting", "jobs_running", "queue_oldest_age_seconds", "workers", "worker_slots"):
        assert by_name[f"headrace_{name}"].across is Across.MAX
    assert by_name["headrace_worker_jobs"].across is Across.SUM


def test_a_job_that_ended_is_counted_once_with_its_tokens(model: str) -> None:
    began = datetime(2026, 1, 1, tzinfo=UTC)
    job = Job(new_job_id(), Owner(1, 1), model, JobStatus.IN_PROGRESS, 9, GenerateRequest(prompt="x"), began)
    ending = JobResult(
        JobStatus.FAILED,
        began + timedelta(seconds=2),
        (),
        Usage(11, 5, 7),
        Failure("engine_error", "It broke."),
        None,
        (),
        "",
    )
    before = samples(Exporter.API)
    metrics.job_ended(job, ending)
    after = samples(Exporter.API)
    grown = {key: value - before.get(key, 0.0) for key, value in after.items() if value != before.get(key, 0.0)}
    short = {(name, *(value for _, value in labels)): value for (name, labels), value in grown.items()}
    assert {key: value for key, value in short.items() if "bucket" not in key[0] and "headrace" in key[0]} == {
        ("headrace_jobs_finished_total", model, "9", "failed"): 1,
        ("headrace_job_errors_total", "engine_error", model): 1,
        ("headrace_job_duration_seconds_count", model, "9"): 1,
        ("headrace_job_duration_seconds_sum", model, "9"): 2,
        ("headrace_prompt_tokens_total", model): 11,
        ("headrace_cached_tokens_total", model): 5,
        ("headrace_completion_tokens_total", model): 7,
    }


class Route:
    path = "/v1/jobs/{job_id}"


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers as its path says: a number is a status; else it fails."""
    if scope["path"].startswith("/v1/jobs/"):
        scope["route"] = Route()
    if scope["path"].endswith("fault"):
        raise RuntimeError("a fault")
    await send({"type": "http.response.start", "status": 404 if "route" not in scope else 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def _call(method: str, path: str) -> None:
    async def receive() -> Message:
        return await asyncio.Future()

    async def send(_: Message) -> None:
        pass

    await MetricsMiddleware(_app)({"type": "http", "method": method, "path": path}, receive, send)


async def test_http_is_counted_by_route_template_never_by_path() -> None:
    before = samples(Exporter.API)
    for number in range(5):
        await _call("GET", f"/v1/jobs/job_{number}")
        await _call("INVENTED", f"/invented/{number}")
    with pytest.raises(RuntimeError):
        await _call("GET", "/v1/jobs/fault")
    after = samples(Exporter.API)
    requests = {
        tuple(value for _, value in labels): value - before.get((name, labels), 0.0)
        for (name, labels), value in after.items()
        if name == "headrace_http_requests_total" and value != before.get((name, labels), 0.0)
    }
    assert requests == {
        ("GET", "/v1/jobs/{job_id}", "200"): 5,
        ("GET", "/v1/jobs/{job_id}", "500"): 1,
        ("(other)", "(none)", "404"): 5,
    }


class Stuck:
    """A stream whose reader takes nothing: what sse-starlette raises, as it does, in a group or alone."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise self._error


@pytest.mark.parametrize("error", [SendTimeoutError(), ExceptionGroup("tasks", [SendTimeoutError()])])
async def test_a_reader_that_takes_nothing_is_counted_when_it_is_dropped(error: Exception) -> None:
    before = samples(Exporter.API)

    async def never(*_: object) -> Message:
        return await asyncio.Future()

    async def send(_: Message) -> None:
        pass

    with pytest.raises(type(error)):
        await MetricsMiddleware(Stuck(error))({"type": "http", "method": "GET", "path": "/"}, never, send)
    after = samples(Exporter.API)
    dropped = ("headrace_stream_drops_total", ())
    assert after[dropped] - before[dropped] == 1


def test_processes_name_themselves_and_forget_the_dead(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = tmp_path / f"worker-{dead.pid}.json"
    left.write_text("[]")
    other = tmp_path / f"api-{os.getppid()}.json"
    other.write_text("[]")
    with scrape_target(tmp_path, "worker", "0.0.0.0", 1234):
        mine = tmp_path / f"worker-{os.getpid()}.json"
        assert json.loads(mine.read_text()) == [{"targets": ["127.0.0.1:1234"]}]
        assert not left.exists()
        assert other.exists()
    assert not mine.exists()
