"""Metrics: bounded labels, buckets with edges at the latency goals, names and units by Prometheus's conventions."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Message, Receive, Scope, Send

from api.http.middleware.interrupted import InterruptedResponses
from api.http.middleware.metrics import MetricsMiddleware
from api.http.sse import StoppedReading
from shared.config.models.reload import ReloadResult
from shared.domain.decisions import CacheDecision, Decisions
from shared.domain.job import Failure, Job, JobStatus, JobSummary, Usage, new_job_id
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.result import JobResult
from shared.telemetry.definitions.buckets import FIRST_TOKEN_BUCKETS, INTER_TOKEN_BUCKETS, WAIT_BUCKETS
from shared.telemetry.definitions.labels import OTHER, priority_label
from shared.telemetry.instruments import Aggregation, Exporter, WeightedHistogram
from shared.telemetry.metrics import Metrics
from shared.telemetry.scrape_targets import scrape_target
from tests.support.metrics import api_metrics, worker_metrics
from workers.execution.token_metrics import TokenMetrics

LABELS = {
    "attention_backend", "code", "at", "dtype", "endpoint", "format", "from", "kind", "level", "method", "model",
    "outcome",
    "parameter", "part", "priority", "quantization", "rating", "reason", "result", "route", "rule", "scope", "source",
    "speculation", "start", "state", "status", "strategy", "to", "unit", "write",
}  # fmt: skip
MODEL = "sim"
UNDECLARED = "invented"
DEFINITIONS = api_metrics().definitions


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The values that a process exports, by name and labels."""
    text = generate_latest(metrics.registry()).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


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
        assert definition.help_text.endswith("."), definition.name


def test_labels_are_few_and_bounded() -> None:
    for definition in DEFINITIONS:
        for label in definition.labels:
            assert label.name in LABELS, f"{definition.name}: is {label.name} bounded? Job ids and keys are not"
            assert label.values or label.bound, f"{definition.name}: {label.name} does not say what limits its values"
        # An info metric has one series for each process.
        assert len(definition.labels) <= 3 or definition.name.endswith("_info")


@pytest.mark.parametrize("metrics", [api_metrics(MODEL), worker_metrics(MODEL)])
def test_undeclared_models_are_not_labels(metrics: Metrics) -> None:
    assert metrics.model_label(MODEL) == MODEL
    assert metrics.model_label(UNDECLARED) == OTHER
    metrics.submitted(UNDECLARED, 4)
    TokenMetrics(metrics, UNDECLARED).record(0, 3, 1.0)
    assert not [key for key in samples(metrics) if UNDECLARED in dict(key[1]).values()]


def test_counts_are_not_shared_between_objects() -> None:
    counted, other = api_metrics(MODEL), api_metrics(MODEL)
    counted.submitted(MODEL, 4)
    key = ("headrace_jobs_submitted_total", (("model", MODEL), ("priority", "3-5")))
    assert samples(counted)[key] == 1
    assert samples(other)[key] == 0


def test_priorities_are_labelled_by_band() -> None:
    assert [priority_label(priority) for priority in range(10)] == [
        *["0-2"] * 3, *["3-5"] * 3, *["6-8"] * 3, "9",
    ]  # fmt: skip


@pytest.mark.parametrize("buckets", [FIRST_TOKEN_BUCKETS, WAIT_BUCKETS])
@pytest.mark.parametrize("goal", [0.2, 0.5])
def test_buckets_resolve_the_goals(buckets: tuple[float, ...], goal: float) -> None:
    at = buckets.index(goal)
    assert goal / buckets[at - 1] <= 4 / 3 + 1e-9
    assert buckets[at + 1] / goal <= 1.5 + 1e-9


def test_a_bucket_includes_its_upper_bound() -> None:
    histogram = WeightedHistogram("h_seconds", "A histogram.", "model", (0.2, 0.5))
    child = histogram.labels("m")
    for value in (0.2, 0.2000001, 0.5, 0.6):
        child.observe(value)
    assert child.counts == [1, 2, 1]


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 5)), max_size=30))
def test_the_weighted_histogram_exports_the_same_as_prometheus_clients(values: list[tuple[float, int]]) -> None:
    ours = WeightedHistogram("h_seconds", "A histogram.", "model", INTER_TOKEN_BUCKETS)
    theirs = Histogram("h_seconds", "A histogram.", ["model"], buckets=INTER_TOKEN_BUCKETS, registry=None)
    child, other = ours.labels("m"), theirs.labels("m")
    for value, times in values:
        child.observe(value, times)
        for _ in range(times):
            other.observe(value)
    shown = []
    for collector in (ours, theirs):
        registry = CollectorRegistry()
        registry.register(collector)
        shown.append(
            [
                (sample.name, sample.labels, pytest.approx(sample.value))
                for family in text_string_to_metric_families(generate_latest(registry).decode())
                for sample in family.samples
            ]
        )
    assert shown[0] == shown[1]


def test_tokens_of_one_flush_share_their_gap() -> None:
    metrics = worker_metrics(MODEL)
    tokens = TokenMetrics(metrics, MODEL)
    tokens.record(0, 1, 100.0)
    tokens.record(1, 1, 100.1)  # another choice has gaps of its own
    tokens.record(0, 4, 100.08)  # 20 ms each
    tokens.record(0, 0, 100.2)
    tokens.record(0, 1, 100.28)
    found = samples(metrics)

    def value(name: str, **labels: str) -> float:
        return found[name, tuple(sorted({"model": MODEL, **labels}.items()))]

    assert value("headrace_generated_tokens_total") == 7
    assert value("headrace_inter_token_latency_seconds_count") == 5
    assert value("headrace_inter_token_latency_seconds_sum") == pytest.approx(0.28)
    assert value("headrace_inter_token_latency_seconds_bucket", le="0.02") == 4


def test_each_process_exports_only_its_own_metrics() -> None:
    for exporter in Exporter:
        exported = {family.name for family in Metrics(exporter, [MODEL]).registry().collect()}
        for definition in DEFINITIONS:
            if not definition.scraped:
                name = definition.name.removesuffix("_total")
                assert (name in exported) == (exporter in definition.exporters), (exporter, name)


def test_counters_start_at_zero() -> None:
    found = samples(worker_metrics(MODEL))
    for status in JobStatus:
        labels = (("model", MODEL), ("priority", "3-5"), ("status", status.value))
        assert found.get(("headrace_jobs_finished_total", labels)) == (0 if status.terminal else None)
    assert found["headrace_rescues_total", (("model", MODEL),)] == 0


def test_values_that_all_processes_read_are_aggregated_by_max() -> None:
    by_name = {definition.name: definition for definition in DEFINITIONS}
    for name in ("jobs_waiting", "jobs_running", "queue_oldest_age_seconds", "workers", "worker_slots"):
        assert by_name[f"headrace_{name}"].aggregation is Aggregation.MAX
    assert by_name["headrace_worker_jobs"].aggregation is Aggregation.SUM


def test_the_end_of_a_job_is_counted_once_with_its_tokens() -> None:
    created = datetime(2026, 1, 1, tzinfo=UTC)
    job = Job(
        id=new_job_id(),
        owner=Owner(1, 1),
        model=MODEL,
        status=JobStatus.IN_PROGRESS,
        priority=9,
        request=GenerateRequest(prompt="x"),
        created_at=created,
    )
    result = JobResult(
        JobStatus.FAILED,
        created + timedelta(seconds=2),
        b"[]",
        Usage(11, 5, 7, 2, 3),
        Failure("engine_error", "It broke."),
        None,
        (),
        b"",
    )
    metrics = api_metrics(MODEL)
    metrics.job_ended(job, result)
    counted = {
        (name, *(value for _, value in labels)): value
        for (name, labels), value in samples(metrics).items()
        if value and name.startswith("headrace") and not name.endswith("_bucket")
    }
    assert counted == {
        ("headrace_jobs_finished_total", MODEL, "9", "failed"): 1,
        ("headrace_job_errors_total", "engine_error", MODEL): 1,
        ("headrace_job_duration_seconds_count", MODEL, "9"): 1,
        ("headrace_job_duration_seconds_sum", MODEL, "9"): 2,
        ("headrace_prompt_tokens_total", MODEL): 11,
        ("headrace_cached_tokens_total", MODEL): 5,
        ("headrace_completion_tokens_total", MODEL): 7,
        ("headrace_reasoning_tokens_total", MODEL): 2,
        ("headrace_cache_write_tokens_total", MODEL): 3,
    }


@pytest.mark.parametrize(
    ("changes", "tokens", "ended"),
    [
        ({}, {"prompt": 11, "cached": 5, "completion": 7}, 1),
        ({"follows": "job_leader"}, {}, 0),
        ({"inherited": {"prompt_tokens": 11, "cached_tokens": 5, "completion_tokens": 3}}, {"completion": 4}, 1),
        ({"inherited": {"completion_tokens": 3}}, {"prompt": 11, "cached": 5, "completion": 4}, 1),
        ({"inherited": {"completion_tokens": 9}}, {"prompt": 11, "cached": 5}, 1),
    ],
    ids=["run", "follower", "took over a generation", "continues an answer", "ended without its beginning"],
)
def test_tokens_are_counted_for_the_job_that_they_were_generated_for(
    changes: dict[str, Any], tokens: dict[str, int], ended: int
) -> None:
    created = datetime(2026, 1, 1, tzinfo=UTC)
    job = JobSummary(
        id=new_job_id(),
        owner=Owner(1, 1),
        model=MODEL,
        status=JobStatus.QUEUED,
        priority=9,
        created_at=created,
        follows=changes.get("follows"),
        decisions=Decisions(cache=CacheDecision(outcome="MISS", inherited=changes.get("inherited"))),
    )
    usage = Usage(11, 5, 7)
    metrics = api_metrics(MODEL)
    metrics.job_ended(job, JobResult(JobStatus.CANCELLED, created, b"[]", usage, None, None, (), b""))
    found = {name: value for (name, _), value in samples(metrics).items() if value}
    assert {name: found[f"headrace_{name}_tokens_total"] for name in tokens} == tokens
    assert sum(name.endswith("_tokens_total") for name in found) == len(tokens)
    assert found.get("headrace_job_duration_seconds_count", 0) == ended
    assert found["headrace_jobs_finished_total"] == 1


class Route:
    path = "/v1/jobs/{job_id}"


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    """Responds with 200 on a route and 404 elsewhere; raises for a path that ends in `fault`."""
    if scope["path"].startswith("/v1/jobs/"):
        scope["route"] = Route()
    if scope["path"].endswith("fault"):
        raise RuntimeError("a fault")
    await send({"type": "http.response.start", "status": 404 if "route" not in scope else 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def _call(metrics: Metrics, method: str, path: str) -> None:
    async def receive() -> Message:
        return await asyncio.Future()

    async def send(_: Message) -> None:
        pass

    await MetricsMiddleware(_app, metrics)({"type": "http", "method": method, "path": path}, receive, send)


async def test_http_is_counted_by_route_template_instead_of_path() -> None:
    metrics = api_metrics()
    for number in range(5):
        await _call(metrics, "GET", f"/v1/jobs/job_{number}")
        await _call(metrics, "INVENTED", f"/invented/{number}")
    with pytest.raises(RuntimeError):
        await _call(metrics, "GET", "/v1/jobs/fault")
    requests = {
        tuple(value for _, value in labels): value
        for (name, labels), value in samples(metrics).items()
        if name == "headrace_http_requests_total"
    }
    assert requests == {
        ("GET", "/v1/jobs/{job_id}", "200"): 5,
        ("GET", "/v1/jobs/{job_id}", "500"): 1,
        ("(other)", "(none)", "404"): 5,
    }


async def test_a_client_that_reads_nothing_is_counted_and_disconnected() -> None:
    metrics = api_metrics()
    disconnected = asyncio.Event()

    async def stalled(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise StoppedReading

    async def receive() -> Message:
        await disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        pass

    scope = {"type": "http", "path": "/", "state": {"disconnect": disconnected.set}}
    await InterruptedResponses(stalled, metrics)(scope, receive, send)
    assert samples(metrics)["headrace_stream_drops_total", ()] == 1


def test_a_process_writes_its_scrape_target_and_removes_stale_ones(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    stale = tmp_path / f"worker-{dead.pid}.json"
    stale.write_text("[]")
    other = tmp_path / f"api-{os.getppid()}.json"
    other.write_text("[]")
    with scrape_target(tmp_path, "worker", "0.0.0.0", 1234):
        own = tmp_path / f"worker-{os.getpid()}.json"
        assert json.loads(own.read_text()) == [{"targets": ["127.0.0.1:1234"]}]
        assert not stale.exists()
        assert other.exists()
    assert not own.exists()


def test_a_process_is_outdated_until_a_reload_is_applied() -> None:
    metrics = worker_metrics("m")

    def outdated() -> list[str]:
        found = samples(metrics)
        return [
            result
            for result in ("failed", "restart_needed")
            if found["headrace_models_outdated", (("result", result),)]
        ]

    assert outdated() == []
    for result, expected in (
        (ReloadResult.FAILED, ["failed"]),
        (ReloadResult.RESTART_NEEDED, ["restart_needed"]),
        (ReloadResult.FAILED, ["failed"]),
        (ReloadResult.APPLIED, []),
    ):
        metrics.reloaded(result)
        assert outdated() == expected
