"""Metrics of a running stack have the expected values, and a Prometheus server discovers and parses them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Servers
from tests.e2e.conftest import FAIL, make_stack
from tests.support.database import drop_database
from tests.support.metrics import Samples, samples, targets_of
from tests.support.prometheus import Prometheus, needs_prometheus, prometheus_of
from tests.support.stack import Stack
from tests.support.waiting import eventually, eventually_sync
from tests.unit.deployment.test_observe import DEFINITIONS, EXPRESSIONS, FOREIGN, RECORDED, names

WORKER_SLOTS = 8
VARIABLES = {"$model": ".*", "$instance": ".*", "$__rate_interval": "1m"}


@pytest.fixture(scope="module")
def watched(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The API and one worker for `sim`; `orphan` has no worker."""
    models: list[dict[str, object]] = [
        {"name": "sim", "engine": "simulated", "slots": WORKER_SLOTS, "options": {"itl_ms": 1, "fail_on": FAIL}},
        {"name": "orphan", "engine": "simulated", "slots": 4},
    ]
    stack = make_stack(
        servers,
        tmp_path_factory,
        "metrics",
        models,
    )
    try:
        stack.start_api()
        stack.start_worker("sim")
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_metrics")


@pytest.fixture
async def client(watched: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with watched.client() as client:
        yield client


async def difference(stack: Stack, role: str, before: Samples) -> Samples:
    after = await samples(stack, role)
    return {key: value - before.get(key, 0.0) for key, value in after.items() if value != before.get(key, 0.0)}


async def test_counters_count_each_job_once(watched: Stack, client: httpx.AsyncClient) -> None:
    """Eleven jobs of four kinds, two of them streamed and one resumed, are each counted once, with their tokens."""
    api, worker = await samples(watched, "api"), await samples(watched, "worker")

    async def chat(text: str, tokens: int, **fields: Any) -> httpx.Response:
        message = {"role": "user", "content": text}
        return await client.post(
            "/v1/chat/completions",
            json={"model": "sim", "messages": [message], "max_tokens": tokens, **fields},
        )

    answers = await asyncio.gather(*(chat(f"Number {number}", 10 + number) for number in range(6)))
    usage = [answer.json()["usage"] for answer in answers]
    for tokens in (30, 40):
        assert (await chat("Stream", tokens, stream=True)).status_code == 200
    assert (await chat(FAIL, 10)).status_code == 500
    batch = await client.post("/v1/jobs", json={"model": "sim", "prompt": "x", "max_tokens": 5, "priority": 9})
    job = batch.json()["id"]
    assert (await client.get(f"/v1/jobs/{job}/stream")).status_code == 200
    assert (await client.get(f"/v1/jobs/{job}/stream?starting_after=1")).status_code == 200
    queued_id = (await client.post("/v1/jobs", json={"model": "orphan", "prompt": "x"})).json()["id"]
    await client.post(f"/v1/jobs/{queued_id}/cancel")
    assert (await client.post("/v1/jobs", json={"model": "invented", "prompt": "x"})).status_code == 404
    assert (await client.get("/invented/path")).status_code == 404

    api, worker = await difference(watched, "api", api), await difference(watched, "worker", worker)
    assert api["headrace_jobs_submitted_total", "sim", "3-5"] == 9
    assert api["headrace_jobs_submitted_total", "sim", "9"] == 1
    assert api["headrace_jobs_submitted_total", "orphan", "3-5"] == 1
    assert api["headrace_jobs_finished_total", "orphan", "3-5", "cancelled"] == 1  # the API ended it before it ran
    assert api["headrace_job_errors_total", "cancelled", "orphan"] == 1
    ended = {key[2:]: value for key, value in worker.items() if key[0] == "headrace_jobs_finished_total"}
    assert sum(ended.values()) == 10
    assert ended["3-5", "failed"] == 1
    assert sum(value for key, value in ended.items() if key[0] == "9") == 1
    assert worker["headrace_job_errors_total", "engine_error", "sim"] == 1
    assert sum(value for key, value in worker.items() if key[0] == "headrace_attempts_total") == 10

    generated = sum(item["completion_tokens"] for item in usage) + 30 + 40 + 5
    assert generated == sum(10 + number for number in range(6)) + 75
    assert worker["headrace_completion_tokens_total", "sim"] == generated
    assert worker["headrace_generated_tokens_total", "sim"] == generated
    assert worker["headrace_inter_token_latency_seconds_count", "sim"] <= generated - 9
    assert worker["headrace_time_to_first_token_seconds_count", "sim", "3-5"] == 8
    assert worker["headrace_time_to_first_token_seconds_count", "sim", "9"] == 1
    assert worker["headrace_queue_wait_seconds_count", "sim", "3-5"] == 9
    assert worker["headrace_dispatch_seconds_count", "sim"] == 10
    assert worker["headrace_engine_first_token_seconds_count", "sim"] == 9
    assert worker["headrace_job_duration_seconds_count", "sim", "3-5"] == 9

    assert api["headrace_http_requests_total", "POST", "/v1/chat/completions", "200"] == 8
    assert api["headrace_http_requests_total", "POST", "/v1/chat/completions", "500"] == 1
    assert api["headrace_http_requests_total", "POST", "/v1/jobs", "202"] == 2
    assert api["headrace_http_requests_total", "POST", "/v1/jobs", "404"] == 1
    assert api["headrace_http_requests_total", "GET", "/v1/jobs/{job_id}/stream", "200"] == 2
    assert api["headrace_http_requests_total", "GET", "(none)", "404"] == 1
    assert api["headrace_stream_opens_total", "cursor"] == 1
    assert api["headrace_stream_opens_total", "start"] == 3
    assert not [key for key in (*api, *worker) if any("invented" in part or job in part for part in key)]


async def test_stages_add_up_to_the_time_to_first_token(watched: Stack, client: httpx.AsyncClient) -> None:
    before = await samples(watched, "worker")
    for _ in range(5):
        await client.post("/v1/completions", json={"model": "sim", "prompt": "x", "max_tokens": 2})
    growth = await difference(watched, "worker", before)
    stages = (
        growth["headrace_queue_wait_seconds_sum", "sim", "3-5"]
        # 0 if the engine had all of them before their claims.
        + growth.get(("headrace_dispatch_seconds_sum", "sim"), 0.0)
        + growth["headrace_engine_first_token_seconds_sum", "sim"]
    )
    total = growth["headrace_time_to_first_token_seconds_sum", "sim", "3-5"]
    assert stages == pytest.approx(total, abs=0.1)  # the stages have no gaps and do not overlap


async def test_queue_metrics_exist_for_empty_queues_and_without_workers(
    watched: Stack, client: httpx.AsyncClient
) -> None:
    jobs = [
        (await client.post("/v1/jobs", json={"model": "orphan", "prompt": "x", "priority": priority})).json()["id"]
        for priority in (0, 4, 4)
    ]

    async def counted() -> Samples | None:
        found = await samples(watched, "api")
        return found if found["headrace_jobs_waiting", "orphan", "3-5"] == 2 else None

    found = await eventually(counted, "the queue metrics are updated")
    assert found["headrace_jobs_waiting", "orphan", "0-2"] == 1
    assert found["headrace_jobs_waiting", "orphan", "9"] == 0
    assert found["headrace_jobs_waiting", "sim", "3-5"] == 0
    assert found["headrace_queue_oldest_age_seconds", "orphan", "0-2"] > 0
    assert found["headrace_queue_oldest_age_seconds", "sim", "0-2"] == 0
    assert found["headrace_worker_slots", "orphan"] == 4
    assert found["headrace_workers", "orphan", "ready"] == 0
    assert found["headrace_workers", "sim", "ready"] == 1
    assert found["headrace_database_up",] == found["headrace_redis_up",] == 1
    for job in jobs:
        await client.post(f"/v1/jobs/{job}/cancel")


@needs_prometheus
async def test_prometheus_discovers_and_evaluates_all_metrics(
    watched: Stack, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    """Two API processes and a worker: the queue is counted once, the counters of both API processes add up, and every
    expression of the dashboards and rules can be evaluated from existing metrics."""
    with watched.second_api() as second, prometheus_of(targets_of(watched), tmp_path) as prometheus:
        eventually_sync(
            lambda: prometheus.value('sum(up{job=~"headrace-.*"})') == 3,
            "Prometheus has discovered all three",
            within_s=60,
        )
        jobs = [(await client.post("/v1/jobs", json={"model": "orphan", "prompt": "x"})).json()["id"] for _ in range(6)]
        before = prometheus.value('sum(headrace_jobs_finished_total{model="sim"})')
        submitted = prometheus.value('sum(headrace_jobs_submitted_total{model="sim"})')
        assert before is not None
        assert submitted is not None
        async with watched.client(base_url=second) as other:
            for one in (client, other):
                body = {"model": "sim", "prompt": "x", "max_tokens": 3}
                assert (await one.post("/v1/completions", json=body)).status_code == 200

        eventually_sync(
            lambda: prometheus.value('sum(headrace_jobs_finished_total{model="sim"})') == before + 2,
            "the jobs that the worker finished are counted",
            within_s=60,
        )
        eventually_sync(
            lambda: prometheus.value('sum(headrace_jobs_submitted_total{model="sim"})') == submitted + 2,
            "the jobs submitted to the two API processes add up",
            within_s=60,
        )
        eventually_sync(
            lambda: prometheus.value('sum(headrace_jobs_waiting{model="orphan"})') == 12,
            "both API processes show the same six jobs",
            within_s=60,
        )
        assert prometheus.value('sum(max by (priority) (headrace_jobs_waiting{model="orphan"}))') == 6
        expression = """(
          sum(max by (priority) (headrace_jobs_waiting{model="orphan"}))
          + sum(max by (priority) (headrace_jobs_running{model="orphan"}))
        ) / max(headrace_worker_slots{model="orphan"})"""
        assert prometheus.value(expression) == 1.5
        eventually_sync(
            lambda: prometheus.value('headrace:workers_wanted{model="orphan"}') == 1.5,
            "the recording rule has the same value",
            within_s=60,
        )
        _check_expressions(prometheus)
        for job in jobs:
            await client.post(f"/v1/jobs/{job}/cancel")
        alerts = {rule["name"] for group in prometheus.get("/rules", type="alert")["groups"] for rule in group["rules"]}
        assert {"HeadraceFirstTokensSlow", "HeadraceNoWorker"} <= alerts


def _check_expressions(prometheus: Prometheus) -> None:
    """Each expression can be evaluated, and each metric that is used or defined exists."""
    known = set(prometheus.get("/metadata"))
    for definition in DEFINITIONS:
        assert definition.name in known or definition.name.removesuffix("_total") in known, definition.name
    series = set(prometheus.get("/label/__name__/values"))
    with_results = 0
    for where, expression in EXPRESSIONS:
        for variable, value in VARIABLES.items():
            expression = expression.replace(variable, value)
        with_results += bool(prometheus.query(expression))
        for name in names(expression) & (RECORDED | FOREIGN):
            assert name in series or name in RECORDED, f"{where}: {name} does not exist"
    assert with_results > len(EXPRESSIONS) / 3
    for rule in (rule for group in prometheus.get("/rules")["groups"] for rule in group["rules"]):
        assert rule["health"] == "ok", rule
