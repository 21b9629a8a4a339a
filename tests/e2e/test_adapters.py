"""LoRA adapters: models of their own name whose jobs the workers of their base run. With the simulated engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.console.test_protection import sign_in
from tests.e2e.test_jobs import submit, wait_for_end, wait_until_running
from tests.support import command_line
from tests.support.console import create_key
from tests.support.database import drop_database
from tests.support.metrics import samples
from tests.support.sse import follow, read_events, text_of
from tests.support.stack import KEY, Stack, write_models
from tests.support.waiting import eventually

BASE: dict[str, object] = {
    "name": "base",
    "engine": "simulated",
    "slots": 4,
    "options": {"ttft_ms": 5, "itl_ms": 10, "max_model_len": 4096},
}
TONE: dict[str, object] = {"name": "tone", "adapter_of": "base", "adapter": "./tone", "description": "Friendly"}
LEGAL: dict[str, object] = {"name": "legal", "adapter_of": "base", "adapter": "./legal"}
MODELS = [BASE, TONE, LEGAL]
ROUTES: list[dict[str, object]] = [
    {"name": "either", "otherwise": "gone", "fallbacks": {"gone": ["tone"]}},
]


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The API and a worker of a model with two adapters; `gone` has no worker."""
    stack = make_stack(
        servers,
        tmp_path_factory,
        "adapters",
        [*MODELS, {"name": "gone", "engine": "simulated"}],
        routes=ROUTES,
        HEADRACE_LEASE_S=2,
        HEADRACE_HEARTBEAT_S=0.5,
    )
    try:
        stack.start_api()
        stack.start_worker("base")
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_adapters")


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.client() as client:
        yield client


async def text(client: httpx.AsyncClient, model: str, **body: Any) -> str:
    job = await wait_for_end(client, (await submit(client, model=model, **body))["id"])
    assert job["model"] == model
    return str(job["output_text"])


async def test_an_adapter_is_a_model_of_the_list(stack: Stack, client: httpx.AsyncClient) -> None:
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=KEY, max_retries=0) as api:
        listed = {model.id: model.to_dict() for model in (await api.models.list()).data}
        assert list(listed) == ["base", "tone", "legal", "gone", "either"]
        assert listed["tone"]["parent"] == "base"
        assert "parent" not in listed["base"]
        for member in ("max_model_len", "capabilities"):
            assert listed["tone"][member] == listed["base"][member]
        assert (await api.models.retrieve("tone")).to_dict() == listed["tone"]
        answer = await api.chat.completions.create(
            model="tone", messages=[{"role": "user", "content": "Hello"}], max_tokens=4
        )
        assert answer.model == "tone"
        assert answer.choices[0].message.content


async def test_the_worker_of_the_base_answers_with_each_adapter(client: httpx.AsyncClient) -> None:
    answers = [await text(client, model) for model in ("base", "tone", "legal")]
    assert len(set(answers)) == 3
    assert answers == [await text(client, model) for model in ("base", "tone", "legal")]


async def test_their_jobs_share_the_slots_and_the_queue_of_the_base(stack: Stack, client: httpx.AsyncClient) -> None:
    running = [(await submit(client, model="base", max_tokens=150))["id"] for _ in range(4)]
    await asyncio.gather(*(wait_until_running(client, job) for job in running))
    waiting = [await submit(client, model=model, max_tokens=1) for model in ("tone", "base", "legal")]
    read = [(await client.get(f"/v1/jobs/{job['id']}")).json() for job in waiting]
    assert [(job["status"], job["queue_position"]) for job in read] == [("queued", 0), ("queued", 1), ("queued", 2)]
    for job in running:
        await client.post(f"/v1/jobs/{job}/cancel")
    ended = [await wait_for_end(client, job["id"]) for job in waiting]
    assert {job["status"] for job in ended} == {"incomplete"}
    found = await samples(stack, "worker")
    assert found["headrace_jobs_finished_total", "legal", "3-5", "incomplete"] >= 1
    assert found["headrace_worker_slots", "base"] == 4
    assert ("headrace_worker_slots", "tone") not in found


async def test_a_lost_worker_costs_an_adapters_job_nothing(stack: Stack, client: httpx.AsyncClient) -> None:
    whole = await text(client, "tone", prompt="again", max_tokens=120)
    job = await submit(client, model="tone", prompt="again", max_tokens=120)
    async with client.stream("GET", f"/v1/jobs/{job['id']}/stream") as response:
        async for event in read_events(response):
            if event.event == "job.delta" and (event.id or 0) > 8:
                break
    (first,) = stack.workers("base")
    stack.kill(first)
    stack.start_worker("base")
    events = await follow(client, job["id"])
    assert text_of(events) == whole
    assert "job.restarted" not in [event.event for event in events]
    ended = await wait_for_end(client, job["id"])
    assert [attempt["outcome"] for attempt in ended["attempts"]] == ["worker_lost", "incomplete"]
    assert len({event.data["fingerprint"] for event in events if event.event == "job.started"}) == 1


async def test_a_route_falls_back_to_an_adapter(client: httpx.AsyncClient) -> None:
    job = await wait_for_end(client, (await submit(client, model="either", max_tokens=3))["id"])
    assert (job["model"], job["requested_model"]) == ("tone", "either")


async def test_only_the_base_is_paused(stack: Stack, client: httpx.AsyncClient) -> None:
    key = create_key(stack, "operator", "admin", "inference")
    headers = {"Authorization": f"Bearer {key}"}
    refused = await client.post("/v1/models/tone/pause", headers=headers)
    assert refused.status_code == 409
    assert "pause or resume that one" in refused.json()["error"]["message"]
    assert (await client.post("/v1/models/base/pause", headers=headers)).status_code == 200
    job = await submit(client, model="tone", max_tokens=1)

    async def waits_for_the_pause() -> bool:
        read = (await client.get(f"/v1/jobs/{job['id']}")).json()
        assert read["status"] == "queued"
        return read.get("queue_paused") is True

    await eventually(waits_for_the_pause, "the job shows the pause")
    assert (await client.post("/v1/models/base/resume", headers=headers)).status_code == 200
    assert (await wait_for_end(client, job["id"]))["status"] == "incomplete"


def test_the_console_shows_adapters_under_their_base(stack: Stack) -> None:
    key = create_key(stack, "console", "admin", "inference")
    with sign_in(stack, key) as console:
        page = console.get("models").text
        assert page.count('class="card" aria-labelledby="model-') == 2
        adapters = page.partition('aria-label="Adapters of base"')[2].partition("</table>")[0]
        assert "models/model?name=tone" in adapters
        assert "Friendly" in adapters
        tone = console.get("models/model?name=tone").text
        assert "python -m workers base" in tone
        assert "Adapter of" in tone
        assert "models/pause" not in tone


def test_the_command_line_names_the_base_of_an_adapter(stack: Stack) -> None:
    shown = command_line.run(stack.url, "models", "show", "tone", key=KEY)
    assert "adapter of base" in shown.stdout


async def test_readiness_names_queues(stack: Stack, client: httpx.AsyncClient) -> None:
    checks = (await client.get("/readyz")).json()["checks"]
    assert {name for name in checks if name.startswith("model ")} == {"model base", "model gone"}
    assert checks["model base"] == "ok"


def test_an_adapter_has_no_worker_of_its_own(stack: Stack) -> None:
    refused = stack.command("workers", "tone", check=False)
    assert refused.returncode == 2
    assert "'tone' is an adapter of 'base', whose workers run its jobs: python -m workers base" in refused.stderr


@pytest.fixture
def versions(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The API, without a worker."""
    stack = make_stack(servers, tmp_path_factory, "versions", MODELS, HEADRACE_LEASE_S=2, HEADRACE_HEARTBEAT_S=0.5)
    try:
        stack.start_api()
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_versions")


async def test_another_version_of_an_adapter_starts_an_answer_again(versions: Stack) -> None:
    """An answer is not continued with other weights, because these would not have generated its tokens so far."""
    first = versions.start_worker("base")
    async with versions.client() as client:
        job = await submit(client, model="tone", max_tokens=200)
        async with client.stream("GET", f"/v1/jobs/{job['id']}/stream") as response:
            async for event in read_events(response):
                if event.event == "job.delta":
                    break
        versions.kill(first)
        other = {**TONE, "adapter": "./tone-2"}
        models = write_models(versions.folder / "later.yaml", [BASE, other, LEGAL])
        versions.start_worker("base", HEADRACE_MODELS=str(models))
        names = [event.event for event in await follow(client, job["id"])]
        assert names.count("job.restarted") == 1
        assert (await wait_for_end(client, job["id"]))["usage"]["completion_tokens"] == 200
