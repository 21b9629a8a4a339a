"""models.yaml is reloaded at SIGHUP by running processes, without an effect on running streams."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.postgres.engine import connect
from shared.postgres.price_store import PriceStore
from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.support.database import drop_database
from tests.support.metrics import samples
from tests.support.sse import follow, text_of
from tests.support.stack import Stack, write_models
from tests.support.waiting import eventually, eventually_sync

SLOTS = 4
TOKENS = 60
PRICE = {"input": 1, "output": 2}


def model(name: str, **fields: object) -> dict[str, object]:
    options = {"ttft_ms": 5, "itl_ms": 20, "default_tokens": TOKENS}
    return {"name": name, "engine": "simulated", "slots": SLOTS, "options": options, **fields}


@pytest.fixture
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = make_stack(servers, tmp_path_factory, "reload", [model("kept", price=PRICE), model("removed")])
    stack.environment["HEADRACE_REMOVED_GRACE_S"] = "1"
    try:
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_reload")


def replace_models(stack: Stack, models: list[dict[str, object]], routes: Sequence[dict[str, object]] = ()) -> None:
    """Replace the file at once, as editors and Kubernetes do."""
    path = Path(stack.environment["HEADRACE_MODELS"])
    os.replace(write_models(path.with_suffix(".new"), models, routes), path)


def write(path: str, text: str) -> None:
    Path(path).write_text(text)


def send_hup(stack: Stack, times: int = 1) -> None:
    for process in stack.processes.values():
        for _ in range(times):
            process.send_signal(signal.SIGHUP)


def handles_hup(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (signal.SIGHUP - 1) & 1)


async def submit(client: httpx.AsyncClient, name: str) -> httpx.Response:
    return await client.post("/v1/jobs", json={"model": name, "prompt": "Hello"})


async def names(client: httpx.AsyncClient) -> list[str]:
    return [entry["id"] for entry in (await client.get("/v1/models")).json()["data"]]


async def count(stack: Stack, role: str, result: str) -> float:
    return (await samples(stack, role)).get(("headrace_models_reloads_total", result), 0.0)


async def prices(stack: Stack, name: str, inputs: list[int]) -> bool:
    """Whether these are the prices of a model's input, from the first one on."""
    engine = connect(stack.environment["DATABASE_URL"], pool_size=1)
    try:
        found = await PriceStore(engine).prices(model=name, history=True)
    finally:
        await engine.dispose()
    return [one.price_list.steps[0][1].input_fresh for one in found] == inputs


async def check_invalid_file(stack: Stack, client: httpx.AsyncClient, worker: str) -> None:
    """It changes nothing, and the logs of all processes say why."""
    before, path = await names(client), stack.environment["HEADRACE_MODELS"]
    write(path, "models:\n  - name: kept\n    engine: simulated\n    slotz: 4\n")
    send_hup(stack)

    async def failed() -> bool:
        return await count(stack, "api", "failed") >= 1 and await count(stack, "worker", "failed") >= 1

    await eventually(failed, "both processes have tried")
    for log in ("api", worker):
        text = (stack.folder / f"{log}.log").read_text()
        assert f"the models stay as they are: {path}, line 4: models[0].slotz: unknown field" in text
    assert await names(client) == before
    job = (await submit(client, "kept")).json()["id"]
    assert (await follow(client, job))[-1].event == "job.incomplete"


async def test_reload_under_load(stack: Stack) -> None:
    """Models are changed, added and removed while 16 streams run, half of them queued: all get their whole text."""
    stack.start_api()
    workers = {name: stack.start_worker(name) for name in ("kept", "removed")}
    async with stack.client() as client:
        jobs = [(await submit(client, name)).json()["id"] for name in ("kept", "removed") for _ in range(8)]
        streams = [asyncio.create_task(follow(client, job)) for job in jobs]

        async def all_slots_busy() -> bool:
            found = await samples(stack, "worker")
            return sum(value for key, value in found.items() if key[0] == "headrace_worker_jobs") == 2 * SLOTS

        await eventually(all_slots_busy, "both workers are full")
        options = {"ttft_ms": 5, "itl_ms": 20, "default_tokens": TOKENS, "max_model_len": 100}
        price = {"input": 3, "output": 2}
        changed = {
            "slots": 2 * SLOTS, "description": "changed", "modalities": ["image"], "options": options, "price": price,
        }  # fmt: skip
        await eventually(lambda: prices(stack, "kept", [1]), "the price of the start is in the database")
        replace_models(stack, [model("kept", **changed), model("new")])
        send_hup(stack, times=2)

        async def reloaded() -> bool:
            return await names(client) == ["kept", "new"] and await count(stack, "worker", "applied") >= 2

        await eventually(reloaded, "all processes have reloaded")
        await eventually(lambda: prices(stack, "kept", [1, 3]), "the other price is in the database")
        assert (await client.get("/readyz")).json()["checks"]["model new"] == "added, no worker yet"
        assert (await client.get("/readyz")).status_code == 200
        response = await submit(client, "removed")
        assert response.status_code == 404
        assert response.json()["error"]["message"] == (
            "The model `removed` does not exist; available models: kept, new."
        )
        shown = (await client.get("/v1/models")).json()["data"][0]
        assert (shown["max_model_len"], shown["capabilities"]["modalities"]) == (100, ["image", "text"])
        response = await client.post("/v1/jobs", json={"model": "kept", "prompt": "Hi", "max_tokens": 101})
        assert response.status_code == 400, "the context is shorter now"
        stack.start_worker("new")
        assert (await client.post("/v1/jobs", json={"model": "new", "prompt": "Hi", "max_tokens": 2})).is_success

        for job, events in zip(jobs, await asyncio.gather(*streams), strict=True):
            assert [event.event for event in events].count("job.started") == 1, "no job was interrupted"
            assert events[-1].event == "job.incomplete", "it has reached its length"
            view = (await client.get(f"/v1/jobs/{job}")).json()
            assert view["usage"]["completion_tokens"] == TOKENS
            assert text_of(events) == view["output_text"]
        slots = {
            key[1]: value for key, value in (await samples(stack, "api")).items() if key[0] == "headrace_worker_slots"
        }
        assert slots == {"kept": 2 * SLOTS, "new": SLOTS}
        await check_invalid_file(stack, client, workers["kept"])
        route: dict[str, object] = {"name": "auto", "otherwise": "new"}
        replace_models(stack, [model("kept", **changed), model("new")], [route])
        send_hup(stack)

        async def routed() -> bool:
            return await names(client) == ["kept", "new", "auto"]

        await eventually(routed, "the route is served")
        assert (await client.post("/v1/route", json={"model": "auto", "prompt": "Hi"})).json()["model"] == "new"
    removed = stack.processes.pop(workers["removed"])
    assert await asyncio.to_thread(removed.wait, 30) == 0, "the worker of the removed model has ended by itself"
    assert "model=removed was removed" in (stack.folder / f"{workers['removed']}.log").read_text()


@pytest.mark.long
async def test_signals_during_the_start(stack: Stack) -> None:
    """They are kept: the process reloads as soon as it runs."""
    processes = [stack.start("api", "api"), stack.start("worker", "workers", "kept")]
    for process in processes:
        eventually_sync(lambda pid=process.pid: handles_hup(pid), "the signal is handled")  # type: ignore[misc]
    send_hup(stack, times=3)

    async def reloaded() -> Any:
        assert [process.poll() for process in processes] == [None, None]
        try:
            return await count(stack, "api", "applied") and await count(stack, "worker", "applied")
        except (httpx.TransportError, AssertionError):
            return False

    await eventually(reloaded, "both have reloaded", within_s=60)
