"""Idempotency, deadlines, engine crashes, a second SIGTERM and replay by operators, with real processes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from chaos.sse import read_events
from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.test_jobs import submit, wait_for_end, wait_until_running
from tests.support.database import drop_database
from tests.support.sse import follow, text_of
from tests.support.stack import Stack
from tests.support.waiting import eventually

DIE = "<<die>>"


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One API process and one worker for `sim`; `orphan` has none."""
    models: list[dict[str, object]] = [
        {
            "name": "sim",
            "engine": "simulated",
            "slots": 8,
            "options": {"ttft_ms": 5, "itl_ms": 10, "die_on": DIE, "max_model_len": 5000},
        },
        {"name": "orphan", "engine": "simulated"},
    ]
    stack = make_stack(
        servers,
        tmp_path_factory,
        "promises",
        models,
        HEADRACE_LEASE_S=2,
        HEADRACE_HEARTBEAT_S=0.5,
        HEADRACE_ENGINE_BACK_OFF_MAX_S=1,
    )
    try:
        stack.start_api()
        stack.start_worker("sim")
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_promises")


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.client() as client:
        yield client


class TestIdempotency:
    async def test_one_key_creates_one_job_on_all_api_processes(self, stack: Stack, client: httpx.AsyncClient) -> None:
        body = {"model": "sim", "prompt": "once", "max_tokens": 5}
        headers = {"Idempotency-Key": "one"}
        with stack.second_api() as url:
            async with stack.client(base_url=url) as other:
                answers = await asyncio.gather(
                    *(api.post("/v1/jobs", json=body, headers=headers) for api in [client, other] * 6)
                )
        assert {answer.status_code for answer in answers} <= {200, 202}
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert [answer.headers.get("idempotent-replayed") for answer in answers].count(None) == 1

    async def test_another_body_is_rejected(self, client: httpx.AsyncClient) -> None:
        headers = {"Idempotency-Key": "two"}
        await client.post("/v1/jobs", json={"model": "sim", "prompt": "a"}, headers=headers)
        for path, body in (
            ("/v1/jobs", {"model": "sim", "prompt": "b"}),
            ("/v1/completions", {"model": "sim", "prompt": "a"}),
        ):
            answer = await client.post(path, json=body, headers=headers)
            assert answer.status_code == 422
            assert answer.json()["error"]["code"] == "idempotency_key_reused"
            assert answer.json()["error"]["param"] == "Idempotency-Key"

    async def test_a_call_with_a_key_continues_after_a_disconnect(self, client: httpx.AsyncClient) -> None:
        body = {"model": "sim", "messages": [{"role": "user", "content": "x"}], "max_tokens": 60}
        headers = {"Idempotency-Key": "three"}
        async with client.stream(
            "POST", "/v1/chat/completions", json={**body, "stream": True}, headers=headers
        ) as response:
            job_id = response.headers["x-headrace-job-id"]
            async for _ in response.aiter_lines():
                break
        done = await wait_for_end(client, job_id)
        assert done["status"] == "incomplete"
        again = await client.post("/v1/chat/completions", json={**body, "stream": True}, headers=headers)
        assert again.headers["x-headrace-job-id"] == job_id
        assert again.text.endswith("data: [DONE]\n\n")

    @pytest.mark.parametrize("key", ["", "x" * 256, "tab\there"])
    async def test_an_invalid_key_is_rejected(self, client: httpx.AsyncClient, key: str) -> None:
        answer = await client.post("/v1/jobs", json={"model": "sim", "prompt": "a"}, headers={"Idempotency-Key": key})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")


class TestDeadlines:
    async def test_a_job_not_started_in_time_expires_without_a_live_worker(self, client: httpx.AsyncClient) -> None:
        answer = await client.post(
            "/v1/jobs", json={"model": "orphan", "prompt": "x"}, headers={"Start-Before": "200ms"}
        )
        job = answer.json()
        assert job["start_before"] is not None
        events = await follow(client, job["id"])
        assert [item.event for item in events if item.event != "job.queued"] == ["job.expired"]
        done = await wait_for_end(client, job["id"])
        assert (done["status"], done["error"]["code"]) == ("expired", "deadline_exceeded")
        assert done["attempts"] == []

    async def test_a_job_not_finished_in_time_is_cancelled_with_its_text(self, client: httpx.AsyncClient) -> None:
        answer = await client.post(
            "/v1/jobs", json={"model": "sim", "prompt": "x", "max_tokens": 4000}, headers={"Cancel-After": "1s"}
        )
        events = await follow(client, answer.json()["id"])
        done = await wait_for_end(client, answer.json()["id"])
        assert (done["status"], done["error"]["code"]) == ("cancelled", "deadline_exceeded")
        assert done["output_text"] == text_of(events) != ""
        assert 0 < done["usage"]["completion_tokens"] < 4000

    async def test_a_queued_job_is_cancelled_at_its_deadline(self, client: httpx.AsyncClient) -> None:
        answer = await client.post(
            "/v1/jobs", json={"model": "orphan", "prompt": "x"}, headers={"Cancel-After": "0.2s"}
        )
        done = await wait_for_end(client, answer.json()["id"])
        assert (done["status"], done["error"]["code"]) == ("cancelled", "deadline_exceeded")

    async def test_a_job_within_its_deadlines_completes(self, client: httpx.AsyncClient) -> None:
        answer = await client.post(
            "/v1/jobs",
            json={"model": "sim", "prompt": "x", "max_tokens": 5},
            headers={"Start-Before": "30s", "Cancel-After": "1m"},
        )
        assert (await wait_for_end(client, answer.json()["id"]))["status"] == "incomplete"

    @pytest.mark.parametrize("value", ["soon", "-1s", "0", "1d", "", "٣s", "1e3s", "99999999h"])
    @pytest.mark.parametrize("name", ["Start-Before", "Cancel-After"])
    async def test_an_invalid_duration_is_rejected(self, client: httpx.AsyncClient, name: str, value: str) -> None:
        answer = await client.post(
            "/v1/jobs", json={"model": "sim", "prompt": "a"}, headers=[(name.encode(), value.encode())]
        )
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)

    async def test_a_chat_past_its_deadline_returns_504(self, client: httpx.AsyncClient) -> None:
        body = {"model": "orphan", "messages": [{"role": "user", "content": "x"}]}
        answer = await client.post("/v1/chat/completions", json=body, headers={"Start-Before": "100ms"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")


class TestEngineDeath:
    async def test_a_job_that_crashes_the_engine_fails_and_others_run(
        self, stack: Stack, client: httpx.AsyncClient
    ) -> None:
        """The job crashes the engine each time and fails after three attempts. Other jobs run afterwards."""
        poison = await submit(client, prompt=f"please {DIE}", max_tokens=5)

        async def unready() -> bool:
            checks = (await client.get("/readyz")).json()["checks"]
            return bool(checks["model sim"] == "no live worker")

        await eventually(unready, "a worker without an engine is not ready")
        failed = await wait_for_end(client, poison["id"])
        assert (failed["status"], failed["error"]["code"]) == ("failed", "attempts_exhausted")
        assert [attempt["outcome"] for attempt in failed["attempts"]] == ["engine_lost", "engine_lost", "failed"]
        fine = await wait_for_end(client, (await submit(client, prompt="fine", max_tokens=5))["id"])
        assert fine["status"] == "incomplete"

    async def test_a_concurrent_job_resumes_at_its_next_token(self, client: httpx.AsyncClient) -> None:
        complete = await wait_for_end(client, (await submit(client, prompt="beside", max_tokens=300))["id"])
        job = await submit(client, prompt="beside", max_tokens=300)
        events = []
        async with client.stream("GET", f"/v1/jobs/{job['id']}/stream") as response:
            async for item in read_events(response):
                events.append(item)
                if len(events) == 10:
                    poison = await submit(client, prompt=DIE, max_tokens=5)
                    await client.post(f"/v1/jobs/{poison['id']}/cancel")
        done = await wait_for_end(client, job["id"])
        await wait_for_end(client, poison["id"])
        assert text_of(events) == done["output_text"] == complete["output_text"]
        assert "job.restarted" not in [item.event for item in events]
        assert done["usage"]["completion_tokens"] == 300

    async def test_operators_list_and_replay_failed_jobs(self, stack: Stack, client: httpx.AsyncClient) -> None:
        listed = stack.command("api.failed", "list").stdout
        job_id = listed.split()[0]
        assert job_id.startswith("job_")
        assert listed.count("engine_lost") >= 2
        printed = stack.command("api.failed", "replay", job_id).stdout
        again = await wait_for_end(client, printed.split()[-1])
        assert again["metadata"]["replay_of"] == job_id
        assert again["error"]["code"] == "attempts_exhausted", "the replay fails the same way"
        assert (await client.get(f"/v1/jobs/{job_id}")).json()["status"] == "failed", "the original job is unchanged"
        unknown = stack.command("api.failed", "replay", "job_unknown", check=False)
        assert (unknown.returncode, unknown.stderr.strip()) == (1, "there is no failed job job_unknown")


class TestShutdown:
    async def test_a_second_sigterm_requeues_jobs_immediately(self, stack: Stack, client: httpx.AsyncClient) -> None:
        (first,) = [name for name in stack.processes if name.startswith("worker")]
        process = stack.processes.pop(first)
        process.terminate()
        await asyncio.to_thread(process.wait, 20)
        slow = stack.start_worker("sim", HEADRACE_DRAIN_S="120")
        job = await submit(client, prompt="long", max_tokens=1500)
        await wait_until_running(client, job["id"])
        process = stack.processes.pop(slow)
        process.send_signal(signal.SIGTERM)

        async def draining() -> bool:
            return bool((await client.get("/readyz")).json()["checks"]["model sim"] == "no live worker")

        await eventually(draining, "a worker that drains is not ready")
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 15) == 0
        queued = (await client.get(f"/v1/jobs/{job['id']}")).json()
        assert queued["status"] == "queued"
        assert [attempt["outcome"] for attempt in queued["attempts"]] == ["handed_back"]
        stack.start_worker("sim")
        events = await follow(client, job["id"])
        done = await wait_for_end(client, job["id"])
        assert text_of(events) == done["output_text"]
        assert done["usage"]["completion_tokens"] == 1500


class TestCancel:
    async def test_a_job_ends_once_if_cancel_and_completion_coincide(self, client: httpx.AsyncClient) -> None:
        jobs = [await submit(client, prompt=f"race {i}", max_tokens=3) for i in range(40)]

        async def cancel(number: int, job_id: str) -> None:
            await asyncio.sleep(number / 500)
            await client.post(f"/v1/jobs/{job_id}/cancel")

        streams = asyncio.gather(*(follow(client, job["id"]) for job in jobs))
        await asyncio.gather(*(cancel(number, job["id"]) for number, job in enumerate(jobs)))
        for job, events in zip(jobs, await streams, strict=True):
            done = await wait_for_end(client, job["id"])
            last = [item.event for item in events if item.event not in ("job.queued", "job.started", "job.delta")]
            assert last == [f"job.{done['status']}"]
            assert text_of(events) == (done["output_text"] or "")

    async def test_a_cancelling_job_of_a_killed_worker_ends(self, stack: Stack, client: httpx.AsyncClient) -> None:
        (name,) = [name for name in stack.processes if name.startswith("worker")]
        job = await submit(client, prompt="stuck", max_tokens=4000)
        async with client.stream("GET", f"/v1/jobs/{job['id']}/stream") as response:
            seen = []
            async for item in read_events(response):
                seen.append(item)
                if len(seen) == 10:
                    stack.processes[name].send_signal(signal.SIGSTOP)
                    cancelled = await client.post(f"/v1/jobs/{job['id']}/cancel")
                    assert cancelled.json()["status"] == "cancelling"
                    stack.kill(name)
        assert seen[-1].event == "job.cancelled"
        done = await wait_for_end(client, job["id"])
        assert done["output_text"] == text_of(seen) != ""
        assert done["usage"]["completion_tokens"] > 0
        assert done["timings"]["ttft_ms"] < done["timings"]["total_ms"], "the log has the time of the first token"
        stack.start_worker("sim")
