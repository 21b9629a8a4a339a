"""Traces of real processes, as a collector gets them: one a job, from its request to its readers, over failovers."""

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
from tests.e2e.test_jobs import ended
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
    """A job's spans by their names, once all of these have come."""

    async def probe() -> list[SpanRecord] | None:
        spans = collected.of_job(job_id)
        return spans if {span.name for span in spans} >= set(names) else None

    spans = await eventually(probe, f"spans {names} of {job_id}")
    assert sorted(span.name for span in spans) == sorted(names)
    return {span.name: span for span in spans}


async def test_one_trace_from_the_clients_own_to_the_last_token(
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
    # The worker's times are the database's, in order; the request lasts until the stream's end.
    assert queued.end == attempt.start <= prefill.start < prefill.end == decode.start < decode.end <= attempt.end
    assert request.start <= submitted.start <= submitted.end <= request.end
    assert request.end > decode.end


async def test_both_attempts_and_the_reader_are_in_the_trace_when_a_worker_is_killed(
    stack: Stack, client: httpx.AsyncClient, collected: Collector
) -> None:
    job_id = await submit(client, max_tokens=300)
    async with client.stream("GET", f"/v1/jobs/{job_id}/stream") as response:
        seen = 0
        async for _ in read_events(response):
            seen += 1
            if seen == 10:
                # What the first worker has told so far has arrived.
                async def prefilled() -> bool:
                    return any(span.name == "prefill" for span in collected.trace(trace_of(collected, job_id)))

                await eventually(prefilled, "the first prefill is told")
                (first,) = [name for name, it in stack.processes.items() if "workers" in cast("list[str]", it.args)]
                stack.kill(first)
                stack.start_worker("sim")
    done = await ended(client, job_id)

    async def whole() -> list[SpanRecord] | None:
        spans = collected.of_job(job_id)
        names = [span.name for span in spans]
        return spans if "stream" in names and names.count("decode") == 1 and "attempt 2" in names else None

    spans = await eventually(whole, "the whole trace")
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
    # The dead worker's own child is below the span that the living one told in its place.
    prefills = [span for span in spans if span.name == "prefill"]
    assert [span.parent for span in prefills] == [first_attempt.id, second.id]
    assert [span.instance for span in prefills] == [attempt["worker"] for attempt in done["attempts"]]
    assert first_attempt.instance == second.instance, "the dead cannot tell"
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


async def test_failures_and_ends_without_a_worker(client: httpx.AsyncClient, collected: Collector) -> None:
    failed = await submit(client, prompt=f"{MARKER} <<fail>>")
    await ended(client, failed)
    spans = await tree(collected, failed, "POST /v1/jobs", "submit sim", "queue sim", "attempt 1", "prefill")
    assert spans["attempt 1"].error
    assert spans["attempt 1"].attributes["headrace.outcome"] == "failed"
    cancelled = await submit(client, model="orphan")
    await client.post(f"/v1/jobs/{cancelled}/cancel")
    spans = await tree(collected, cancelled, "POST /v1/jobs", "submit orphan", "queue orphan")
    assert spans["queue orphan"].attributes["headrace.outcome"] == "cancelled"


async def test_a_client_that_does_not_sample_is_followed(client: httpx.AsyncClient, collected: Collector) -> None:
    unsampled = "1" * 32
    answer = await client.post(
        "/v1/jobs",
        json={"model": "sim", "prompt": MARKER, "max_tokens": 2},
        headers={"traceparent": f"00-{unsampled}-{SPAN}-00"},
    )
    await ended(client, answer.json()["id"])
    later = await submit(client)
    await ended(client, later)
    await tree(collected, later, "POST /v1/jobs", "submit sim", "queue sim", "attempt 1", "prefill", "decode")
    assert collected.trace(unsampled) == []


@pytest.mark.parametrize("odd", ["", "00-zz", f"00-{'0' * 32}-{SPAN}-01", f"ff-{TRACE}-{SPAN}-01", "ä"])
async def test_an_odd_traceparent_begins_a_new_trace(client: httpx.AsyncClient, collected: Collector, odd: str) -> None:
    answer = await client.post(
        "/v1/jobs",
        json={"model": "sim", "prompt": MARKER, "max_tokens": 2},
        headers=[(b"traceparent", odd.encode("latin-1"))],
    )
    assert answer.status_code == 202
    names = ("POST /v1/jobs", "submit sim", "queue sim", "attempt 1", "prefill", "decode")
    spans = await tree(collected, answer.json()["id"], *names)
    assert spans["POST /v1/jobs"].parent == ""


async def test_no_prompt_and_no_text_is_in_any_span(client: httpx.AsyncClient, collected: Collector) -> None:
    job_id = await submit(client, metadata={"note": MARKER}, stop=[MARKER])
    events = await follow(client, job_id)
    assert events
    names = ("POST /v1/jobs", "submit sim", "queue sim", "attempt 1", "prefill", "decode", "stream")
    await tree(collected, job_id, *names)
    text = (await ended(client, job_id))["output_text"].strip()
    assert not any(hidden.encode() in body for body in collected.bodies for hidden in (MARKER, text))


async def test_a_job_submitted_where_tracing_is_off_has_a_trace_named_after_it(
    stack: Stack, collected: Collector
) -> None:
    """By an API process without traces, or as a batch's line."""
    environment = stack.environment
    stack.environment = environment | {"OTEL_SDK_DISABLED": "true"}
    try:
        with stack.second_api() as url:
            async with stack.client(base_url=url) as client:
                job_id = await submit(client)
                await ended(client, job_id)
    finally:
        stack.environment = environment
    spans = await tree(collected, job_id, "queue sim", "attempt 1", "prefill", "decode")
    assert spans["attempt 1"].parent == ""
    assert {span.trace for span in spans.values()} == {job_id.removeprefix("job_")}


async def test_a_collector_that_is_away_stops_nobody(stack: Stack) -> None:
    environment = stack.environment
    # The timeout is how long a process that stops tries to send its last spans.
    away = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    stack.environment = environment | away
    try:
        with stack.second_api() as url:
            async with stack.client(base_url=url) as client:
                job_id = await submit(client)
                await ended(client, job_id)
    finally:
        stack.environment = environment


def test_it_is_not_loaded_where_it_is_off() -> None:
    """redis-py loads OpenTelemetry's metrics, which it finds; nothing loads its traces."""
    script = (
        "import sys, api.__main__, workers.runtime, workers.engines.simulated.engine\n"
        "from shared.telemetry.tracing import NO_TRACES\n"
        "from shared.telemetry.tracing_setup import open_traces\n"
        "assert open_traces('s', 'i') is NO_TRACES\n"
        "names = ('shared.telemetry.otel', 'opentelemetry.sdk.trace', 'google.protobuf')\n"
        "print([name for name in names if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
