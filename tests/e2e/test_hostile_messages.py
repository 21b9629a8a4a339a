"""Whatever others write to Redis: no process ends, no job is lost, and jobs run on their own model only."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import httpx
import pytest
import redis

from shared.domain.priorities import PRIORITY_STEPS
from shared.redis import keys as redis_keys
from shared.redis.job_queue import TASK, celery_app, list_name, queue_name
from shared.redis.message_template import HintMessages
from tests.conftest import SIM_REDIS_DB
from tests.e2e.test_jobs import submit, wait_for_end, wait_until_running
from tests.e2e.test_outages import reading
from tests.support.metrics import samples
from tests.support.sse import text_of
from tests.support.stack import Stack
from tests.support.waiting import eventually, eventually_sync

pytestmark = pytest.mark.timeout(90)

MESSAGES = HintMessages(celery_app("redis://nowhere"), TASK)
UNKNOWN = "job_" + "0" * 32
PIDBOX = f"/{SIM_REDIS_DB}.celery.pidbox"


def encoded(body: Any) -> str:
    return base64.b64encode(json.dumps(body).encode()).decode()


def command(method: str, **arguments: Any) -> bytes:
    message = {
        "body": encoded({"method": method, "arguments": arguments, "destination": None}),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"clock": 1},
        "properties": {
            "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""},
            "body_encoding": "base64",
            "delivery_tag": "1",
        },
    }
    return json.dumps(message).encode()


def corpus() -> list[bytes]:
    """Bytes that are almost a message, and bytes that are none."""
    rng = random.Random(7)
    values: list[Any] = [None, 1, "x", [], {}]
    good = MESSAGES.message(UNKNOWN, model="sim", queue=queue_name("sim"), priority=3)
    message = json.loads(good)
    found = [b"", b"\0", b"\xff\xfe", b"null", b"[]", b"{}", b"[" * 4000, b'"' + b"x" * 50_000 + b'"', command("ping")]
    for name in message:
        found += [json.dumps(message | {name: value}).encode() for value in values]
    parts: list[tuple[str, dict[str, Any]]] = [("properties", {name: None}) for name in message["properties"]]
    parts += [("headers", {"task": "celery.backend_cleanup"}), ("headers", {"id": None}), ("headers", {"eta": "x"})]
    found += [json.dumps(message | {name: message[name] | changes}).encode() for name, changes in parts]
    for _ in range(40):
        cut = bytearray(good)
        for _ in range(3):
            cut[rng.randrange(len(cut))] = rng.randrange(256)
        found.append(bytes(cut[: rng.randrange(1, len(cut))]) if rng.random() < 0.5 else bytes(cut))
    return found + [rng.randbytes(rng.randrange(1, 300)) for _ in range(20)]


@pytest.fixture
def wire(sim_stack: Stack) -> Any:
    with redis.Redis.from_url(sim_stack.environment["REDIS_URL"]) as client:
        yield client


def queues() -> list[str]:
    return [list_name(queue_name("sim"), step) for step in PRIORITY_STEPS]


async def assert_runs(stack: Stack, client: httpx.AsyncClient) -> None:
    """All processes are alive, and a job runs."""
    assert (await wait_for_end(client, (await submit(client, max_tokens=3))["id"]))["status"] == "incomplete"
    assert all(process.poll() is None for process in stack.processes.values())


async def test_messages_on_the_queue(sim_stack: Stack, sim: httpx.AsyncClient, wire: Any) -> None:
    """On the lists of all priorities; they are dropped, and jobs behind them run."""
    for name in queues():
        wire.lpush(name, *corpus())
    await assert_runs(sim_stack, sim)
    eventually_sync(lambda: not any(wire.llen(name) for name in queues()), "all messages are taken")
    await assert_runs(sim_stack, sim)


async def test_a_message_for_a_job_of_another_model(sim_stack: Stack, sim: httpx.AsyncClient, wire: Any) -> None:
    """Whatever model the message names, the worker does not claim the job; a job of its own model runs after it."""
    job = await submit(sim, model="orphan")
    for model in ("sim", "orphan"):
        wire.lpush(queue_name("sim"), MESSAGES.message(job["id"], model=model, queue=queue_name("sim"), priority=0))
    await assert_runs(sim_stack, sim)
    eventually_sync(lambda: not any(wire.llen(name) for name in queues()), "all messages are taken")
    await assert_runs(sim_stack, sim)
    assert (await sim.get(f"/v1/jobs/{job['id']}")).json()["status"] == "queued"
    await sim.post(f"/v1/jobs/{job['id']}/cancel")


async def test_keys_of_wrong_types(sim_stack: Stack, sim: httpx.AsyncClient, wire: Any) -> None:
    """Keys of the queue, and of a running job's log, are replaced; the stream of another job is not disturbed."""
    victim, bystander = await submit(sim, max_tokens=400), await submit(sim, max_tokens=200)
    await wait_until_running(sim, victim["id"])
    async with reading(sim, bystander) as reader:
        await reader.wait_for_events("job.delta", 3)
        for name in (redis_keys.log(victim["id"]), redis_keys.fence(victim["id"]), *queues()):
            with wire.pipeline() as pipe:
                pipe.delete(name).set(name, "x").execute()
        events = await reader.read_to_end()
    done = await wait_for_end(sim, bystander["id"])
    assert text_of(events) == done["output_text"]
    assert (await wait_for_end(sim, victim["id"]))["usage"]["completion_tokens"] == 400
    await assert_runs(sim_stack, sim)


async def test_entries_in_a_log(sim_stack: Stack, sim: httpx.AsyncClient, wire: Any) -> None:
    """An entry with an id that is too high would refuse all later events; the log is written again without it."""
    job = await submit(sim, max_tokens=300)
    async with reading(sim, job) as reader:
        await reader.wait_for_events("job.delta", 3)
        wire.xadd(redis_keys.log(job["id"]), {"t": "no such type", "e": "{"})
        wire.xadd(redis_keys.log(job["id"]), {"x": b"\xff"})
        events = await reader.read_to_end()
    done = await wait_for_end(sim, job["id"])
    assert text_of(events) == done["output_text"]
    assert done["usage"]["completion_tokens"] == 300
    await assert_runs(sim_stack, sim)


async def test_messages_on_the_channels(sim_stack: Stack, sim: httpx.AsyncClient, wire: Any) -> None:
    """Of the API's live events, of the workers' cancellations, and of Celery's control commands."""
    job = await submit(sim, max_tokens=400)
    async with reading(sim, job) as reader:
        await reader.wait_for_events("job.delta", 3)
        channels = [name for name in wire.pubsub_channels() if name.startswith(b"hr:")]
        assert len(channels) >= 3, "those of the API and of two workers"
        assert wire.pubsub_numpat() >= 1, "of both workers, and of those of other stacks on the same server"
        messages = [*corpus(), *(f"{job['id']} {text}".encode() for text in ("", "x", "1", "x delta {", "5 y {}"))]
        for name in (*channels, PIDBOX, f"{PIDBOX}/x", f"/{SIM_REDIS_DB}.unknown"):
            for message in messages:
                wire.publish(name, message)
        events = await reader.read_to_end()
    done = await wait_for_end(sim, job["id"])
    assert text_of(events) == done["output_text"]
    await assert_runs(sim_stack, sim)


async def test_commands_that_stop_a_worker(sim_stack: Stack, sim: httpx.AsyncClient, wire: Any) -> None:
    for method, arguments in (
        ("shutdown", {}),
        ("pool_shrink", {"n": 100}),
        ("pool_restart", {"modules": ["x"], "reload": True}),
        ("autoscale", {"max": 0, "min": 0}),
        ("cancel_consumer", {"queue": queue_name("sim")}),
        ("add_consumer", {"queue": "other"}),
        ("rate_limit", {"task_name": TASK, "rate_limit": "1/h"}),
        ("time_limit", {"task_name": TASK, "hard": 0.001}),
        ("revoke", {"task_id": [[]]}),
        ("revoke", {"task_id": UNKNOWN, "terminate": True, "signal": "no such signal"}),
        ("no_such_command", {}),
    ):
        assert wire.publish(PIDBOX, command(method, **arguments)) >= 2, "both workers listen"
    dropped = await eventually(lambda: dropped_commands(sim_stack), "commands are dropped")
    assert dropped >= 9
    await assert_runs(sim_stack, sim)


async def dropped_commands(stack: Stack) -> float:
    return (await samples(stack, "worker"))["headrace_malformed_messages_total", "control"]
