"""Traces of real processes, as received by a collector: one per job, from request to readers, across failovers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import httpx
import pytest

from chaos.sse import read_events
from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.test_jobs import wait_for_end
from tests.support.database import drop_database
from tests.support.otlp import Collector, SpanRecord, collector
from tests.support.sse import follow
from tests.support.stack import REPOSITORY, Stack
from tests.support.waiting import eventually

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
MARKER = "xylophone-7391"
SERVER, PRODUCER, CONSUMER = 2, 4, 5


@pytest.fixture(scope="module")
def collected() -> Iterator[Collector]:
    with collector() as collected:
        yield collected


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory, collected: Collector) -> Iterator[Stack]:
    models: list[dict[str, object]] = [
        {
            "name": "sim",
            "engine": "simulated",
            "slots": 8,
            "options": {"ttft_ms": 20, "itl_ms": 10, "fail_on": "<<fail>>", "max_model_len": 5000},
        },
        {"name": "orphan", "engine": "simulated"},
    ]
    stack = make_stack(
        servers,
        tmp_path_factory,
        "traces",
        models,
        HEADRACE_LEASE_S=2,
        HEADRACE_HEARTBEAT_S=0.5,
        OTEL_EXPORTER_OTLP_ENDPOINT=collected.url,
        OTEL_BSP_SCHEDULE_DELAY=50,
    )
    try:
        stack.start_api()
        stack.start_worker("sim")
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_traces")


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.client() as client:
        yield client


async def submit(client: httpx.AsyncClient, **body: Any) -> str:
    response = await client.post("/v1/jobs", json={"model": "sim", "max_tokens": 5, "prompt": MARKER, **body})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


async def tree(collected: Collector, job_id: str, *names: str) -> dict[str, SpanRecord]:
    """Wait for the named spans of a job. Returns them by name."""

    async def probe() -> list[SpanRecord] | None:
        spans = collected.of_job(job_id)
        return spans if {span.name for span in spans} >= set(names) else None

    spans = await eventually(probe, f"spans {names} of {job_id}")
    assert sorted(span.name for span in spans) == sorted(names)
    return {span.name: span for span in spans}


async def test_one_trace_from_the_clients_span_to_the_last_token(
    client: httpx.AsyncClient, collected: Collector
) -> None:
    body = {"model": "sim", "messages": [{"role": "user", "content": MARKER}], "max_tokens": 7, "stream": True}
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "x-request-id": "mine"}
    answer = await client.post("/v1/chat/completions", json=body, headers=headers)
    job_id = answer.headers["x-headrace-job-id"]
    names = ("POST /v1/chat/completions", "submit sim", "queue sim", "attempt 1", "prefill", "decode")
    spans = await tree(collected, job_id, *names)
    request, submitted, queued, attempt, prefill, decode = (spans[name] for name in names)
    assert {span.trace for span in spans.values()} == {TRACE}
    assert request.parent == SPAN
    assert submitted.parent == request.id
    assert queued.parent == attempt.parent == submitted.id
    assert prefill.parent == decode.parent == attempt.id
    assert (request.kind, submitted.kind, attempt.kind) == (SERVER, PRODUCER, CONSUMER)
    assert request.service == submitted.service == "headrace-api"
    assert queued.service == attempt.service == decode.service == "headrace-worker"
    assert (
        request.attributes.items()
        >= {
            "http.route": "/v1/chat/completions",
            "http.response.status_code": 200,
            "headrace.request.id": "mine",
            "headrace.job.id": job_id,
        }.items()
    )
    assert (
        attempt.attributes.items()
        >= {
            "headrace.job.id": job_id,
            "headrace.request.id": "mine",
            "headrace.attempt": 1,
            "headrace.worker": attempt.instance,
            "headrace.outcome": "incomplete",
            "gen_ai.request.model": "sim",
            "gen_ai.usage.output_tokens": 7,
        }.items()
    )
    assert not any(span.error for span in spans.values())
    # The worker's spans use the database's times, in order; the request's span lasts until the end of the stream.
    assert queued.end == attempt.start <= prefill.start < prefill.end == decode.start < decode.end <= attempt.end
    assert request.start <= submitted.start <= submitted.end <= request.end
    assert request.end > decode.end


async def test_the_trace_contains_both_attempts_and_the_reader_after_a_worker_is_killed(
    stack: Stack, client: httpx.AsyncClient, collected: Collector
) -> None:
    job_id = await submit(client, max_tokens=300)
    async with client.stream("GET", f"/v1/jobs/{job_id}/stream") as response:
        seen = 0
        async for _ in read_events(response):
            seen += 1
            if seen == 10:
                # Wait until the first worker's spans so far have arrived.
                async def prefilled() -> bool:
                    return any(span.name == "prefill" for span in collected.trace(trace_of(collected, job_id)))

                await eventually(prefilled, "the first prefill span has arrived")
                (first,) = [name for name, it in stack.processes.items() if "workers" in cast("list[str]", it.args)]
                stack.kill(first)
                stack.start_worker("sim")
    done = await wait_for_end(client, job_id)

    async def all_spans() -> list[SpanRecord] | None:
        spans = collected.of_job(job_id)
        names = [span.name for span in spans]
        return spans if "stream" in names and names.count("decode") == 1 and "attempt 2" in names else None

    spans = await eventually(all_spans, "all spans of the trace")
    named = {span.name: span for span in spans}
    submitted, first_attempt, second = named["submit sim"], named["attempt 1"], named["attempt 2"]
    assert sorted(span.name for span in spans) == [
        "POST /v1/jobs",
        "attempt 1",
        "attempt 2",
        "decode",
        "prefill",
        "prefill",
        "queue sim",
        "queue sim",
        "stream",
        "submit sim",
    ]
    assert first_attempt.parent == second.parent == submitted.id
    assert (first_attempt.attributes["headrace.outcome"], first_attempt.error) == ("worker_lost", True)
    assert (second.attributes["headrace.outcome"], second.error) == ("incomplete", False)
    assert second.attributes["headrace.tokens_before"] > 0
    assert [span.attributes["headrace.worker"] for span in (first_attempt, second)] == [
        attempt["worker"] for attempt in done["attempts"]
    ]
    # The killed worker's child span is below the attempt's span, which the second worker has exported for it.
    prefills = [span for span in spans if span.name == "prefill"]
    assert [span.parent for span in prefills] == [first_attempt.id, second.id]
    assert [span.instance for span in prefills] == [attempt["worker"] for attempt in done["attempts"]]
    assert first_attempt.instance == second.instance, "the killed worker cannot export its attempt"
    reader = named["stream"]
    assert reader.parent == submitted.id
    assert reader.attributes["headrace.events"] > 10
    ((linked_trace, linked_span),) = reader.links
    assert linked_trace != reader.trace
    (request,) = [span for span in collected.trace(linked_trace) if span.id == linked_span]
    assert request.name == "GET /v1/jobs/{job_id}/stream"


def trace_of(collected: Collector, job_id: str) -> str:
    spans = collected.of_job(job_id)
    return spans[0].trace if spans else ""


async def test_spans_of_failed_and_cancelled_jobs(client: httpx.AsyncClient, collected: Collector) -> None:
    failed = await submit(client, prompt=f"{MARKER} <<fail>>")
    await wait_for_end(client, failed)
    spans = await tree(collected, failed, "POST /v1/jobs", "submit sim", "queue sim", "attempt 1", "prefill")
    assert spans["attempt 1"].error
    assert spans["attempt 1"].attributes["headrace.outcome"] == "failed"
    cancelled = await submit(client, model="orphan")
    await client.post(f"/v1/jobs/{cancelled}/cancel")
    spans = await tree(collected, cancelled, "POST /v1/jobs", "submit orphan", "queue orphan")
    assert spans["queue orphan"].attributes["headrace.outcome"] == "cancelled"


async def test_the_clients_sampling_decision_is_respected(client: httpx.AsyncClient, collected: Collector) -> None:
    unsampled = "1" * 32
    answer = await client.post(
        "/v1/jobs",
        json={"model": "sim", "prompt": MARKER, "max_tokens": 2},
        headers={"traceparent": f"00-{unsampled}-{SPAN}-00"},
    )
    await wait_for_end(client, answer.json()["id"])
    later = await submit(client)
    await wait_for_end(client, later)
    await tree(collected, later, "POST /v1/jobs", "submit sim", "queue sim", "attempt 1", "prefill", "decode")
    assert collected.trace(unsampled) == []


@pytest.mark.parametrize("traceparent", ["", "00-zz", f"00-{'0' * 32}-{SPAN}-01", f"ff-{TRACE}-{SPAN}-01", "ä"])
async def test_an_invalid_traceparent_starts_a_new_trace(
    client: httpx.AsyncClient, collected: Collector, traceparent: str
) -> None:
    answer = await client.post(
        "/v1/jobs",
        json={"model": "sim", "prompt": MARKER, "max_tokens": 2},
        headers=[(b"traceparent", traceparent.encode("latin-1"))],
    )
    assert answer.status_code == 202
    names = ("POST /v1/jobs", "submit sim", "queue sim", "attempt 1", "prefill", "decode")
    spans = await tree(collected, answer.json()["id"], *names)
    assert spans["POST /v1/jobs"].parent == ""


async def test_spans_contain_no_prompt_or_output(client: httpx.AsyncClient, collected: Collector) -> None:
    job_id = await submit(client, metadata={"note": MARKER}, stop=[MARKER])
    events = await follow(client, job_id)
    assert events
    names = ("POST /v1/jobs", "submit sim", "queue sim", "attempt 1", "prefill", "decode", "stream")
    await tree(collected, job_id, *names)
    text = (await wait_for_end(client, job_id))["output_text"].strip()
    assert not any(secret.encode() in body for body in collected.bodies for secret in (MARKER, text))


async def test_a_job_submitted_without_tracing_gets_a_trace_id_from_its_id(stack: Stack, collected: Collector) -> None:
    """As with an API process that has tracing disabled, or a line of a batch."""
    environment = stack.environment
    stack.environment = environment | {"OTEL_SDK_DISABLED": "true"}
    try:
        with stack.second_api() as url:
            async with stack.client(base_url=url) as client:
                job_id = await submit(client)
                await wait_for_end(client, job_id)
    finally:
        stack.environment = environment
    spans = await tree(collected, job_id, "queue sim", "attempt 1", "prefill", "decode")
    assert spans["attempt 1"].parent == ""
    assert {span.trace for span in spans.values()} == {job_id.removeprefix("job_")}


async def test_an_unavailable_collector_does_not_affect_jobs(stack: Stack) -> None:
    environment = stack.environment
    # The timeout limits how long a stopping process tries to export its last spans.
    unavailable = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    stack.environment = environment | unavailable
    try:
        with stack.second_api() as url:
            async with stack.client(base_url=url) as client:
                job_id = await submit(client)
                await wait_for_end(client, job_id)
    finally:
        stack.environment = environment


def test_tracing_is_not_loaded_if_disabled() -> None:
    """redis-py loads OpenTelemetry's metrics if installed, but nothing loads its tracing."""
    script = (
        "import sys, api.__main__, api.app, workers.runtime, workers.engines.simulated.engine\n"
        "from shared.telemetry.tracing import NO_TRACES\n"
        "from shared.telemetry.tracing_setup import open_traces\n"
        "assert open_traces('s', 'i') is NO_TRACES\n"
        "names = ('shared.telemetry.otel', 'opentelemetry.sdk.trace', 'google.protobuf')\n"
        "print([name for name in names if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
