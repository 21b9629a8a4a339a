"""A reload of models.yaml in a worker, on a real database and with a stand-in for the upstream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from shared.config.models.openai import OpenAIModel, OpenAIOptions
from shared.config.models.operational import operational_fields
from shared.config.models.reload import ReloadResult
from shared.config.models.simulated import SimulatedModel
from shared.domain.errors import InvalidRequest
from shared.domain.events import Delta, UpstreamState
from shared.domain.job import AttemptOutcome, Job
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Message
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from tests.conftest import Workers
from tests.support.faulty_upstream import Answer, FaultyUpstream, error_answer, faulty_upstream
from tests.support.metrics import worker_metrics
from workers.engines.base import UpstreamBusy
from workers.engines.factory import make_engine
from workers.engines.openai.engine import OpenAIEngine
from workers.engines.upstream.breaker import FAILURES
from workers.execution.attempts.context import AttemptContext
from workers.execution.current_engine import CurrentEngine
from workers.execution.model_context import with_model
from workers.execution.runner import Runner
from workers.execution.slots import SlotPool
from workers.supervision.model_reload import ModelReload


class NoConsumer:
    """Celery's consumer, of which there is none."""

    def poll(self) -> None:
        pass


class Worker:
    """The parts of a worker that a reload concerns."""

    def __init__(self, model: Any, recovery_store: RecoveryStore, grace_s: float) -> None:
        self.metrics = worker_metrics("m")
        self.current = CurrentEngine(make_engine(model, self.metrics))
        context = AttemptContext(
            worker="w",
            engine=self.current.engine,
            store=None,  # type: ignore[arg-type]
            logs=None,  # type: ignore[arg-type]  # no job runs
            log_writer=None,  # type: ignore[arg-type]
            log_ttl_s=1,
            max_attempts=3,
            send=lambda _: None,
            on_engine_death=lambda: None,
            metrics=self.metrics,
        )
        self.runner = Runner(with_model(context, model), SlotPool(model.slots, yields=model.yields))
        self.ended = 0
        self.reload = ModelReload(
            model,
            self.current,
            self.runner,
            recovery_store,
            NoConsumer(),  # type: ignore[arg-type]
            self.metrics,
            self._end,
            grace_s=grace_s,
        )

    def _end(self) -> None:
        self.ended += 1

    async def apply(self, *models: Any) -> ReloadResult:
        return await self.reload.apply({model.name: model for model in models})


SIMULATED = SimulatedModel(name="m", engine="simulated")
Start = Callable[..., Awaitable[Worker]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts workers, which are stopped at the end."""
    async with AsyncExitStack() as stack:

        async def start(model: Any, recovery_store: Any = None, grace_s: float = 0) -> Worker:
            worker = Worker(model, recovery_store, grace_s)
            await worker.current.start()
            stack.push_async_callback(worker.current.stop)
            return worker

        yield start


@pytest.fixture
async def worker(start: Start, recovery_store: RecoveryStore) -> Worker:
    return await start(SIMULATED, recovery_store)


async def submit(store: JobStore, owner: Owner) -> Job:
    return (await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="x"))))[0]


async def test_a_worker_of_a_removed_model_stays_until_no_job_is_left_anywhere(
    worker: Worker, store: JobStore, owner: Owner, workers: Workers
) -> None:
    """A job that runs on another worker may be requeued, and then needs this one."""
    job = await submit(store, owner)
    await worker.apply()
    await worker.reload._check()
    assert not worker.ended, "a job is queued"
    other = workers("other")
    await other.claim(job.id)
    await worker.reload._check()
    assert not worker.ended, "a job runs elsewhere"
    await other.requeue(job.id, 1, tokens=0, outcome=AttemptOutcome.HANDED_BACK)
    await worker.reload._check()
    assert not worker.ended, "it has been requeued"
    await other.claim(job.id)
    await store.mark_cancelling(job.id)
    await worker.reload._check()
    assert not worker.ended, "it is being cancelled"


async def test_a_worker_of_a_removed_model_tries_to_cancel_what_its_upstream_runs(
    worker: Worker, workers: Workers
) -> None:
    claims = workers("other")
    await claims.add_cancellation("job_x", "m", UpstreamState("resp_1", {}))
    await worker.apply()
    await worker.reload._check()
    assert not worker.ended
    assert len(await claims.due_cancellations("m", 1)) == 1
    await worker.reload._check()
    assert worker.ended, "the upstream may be gone: one try is enough"


async def test_a_worker_of_a_removed_model_ends_once(worker: Worker) -> None:
    await worker.apply()
    with worker.runner._counted():  # a message whose job is not yet claimed
        await worker.reload._check()
        assert not worker.ended
    for _ in range(2):
        await worker.reload._check()
    assert [worker.ended] == [1]


async def test_a_worker_of_a_removed_model_waits_for_other_api_processes(
    start: Start, recovery_store: RecoveryStore
) -> None:
    worker = await start(SIMULATED, recovery_store, grace_s=60)
    await worker.apply()
    await worker.reload._check()
    assert not worker.ended
    worker.reload._removed_at = time.monotonic() - 60
    await worker.reload._check()
    assert worker.ended


async def test_a_model_that_is_back_keeps_its_worker(worker: Worker) -> None:
    await worker.apply()
    assert await worker.apply(SIMULATED) is ReloadResult.APPLIED
    await worker.reload._check()
    assert not worker.ended


@pytest.fixture
async def upstreams(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[FaultyUpstream]]:
    for name in ("KEY_A", "KEY_B"):
        monkeypatch.setenv(name, f"sk-{name}-0123456789abcdef")
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(faulty_upstream()) for _ in range(2)]


def relayed(upstream: FaultyUpstream, entry: dict[str, Any] | None = None, **options: Any) -> OpenAIModel:
    """A model with two keys, of which requests use the first if both are available."""
    endpoints = [{"base_url": upstream.url, "api_key_env": name} for name in ("KEY_A", "KEY_B")]
    limits = {"requests_per_minute": 60, "tokens_per_minute": 600}
    options = {"endpoints": endpoints, "health_path": "/health", **limits, **options}
    fields = {"name": "m", "engine": "openai", "preset": "vllm", "model": "theirs", "options": options}
    return OpenAIModel.model_validate(fields | (entry or {}))


def single(upstream: FaultyUpstream, **options: Any) -> OpenAIModel:
    """A model with one address."""
    fields = {"base_url": upstream.url, "max_retries": 0, **options}
    return OpenAIModel.model_validate({"name": "m", "engine": "openai", "model": "theirs", "options": fields})


def upstream_engine(worker: Worker) -> OpenAIEngine:
    """The engine of new requests."""
    engine = worker.runner.context.engine
    assert isinstance(engine, OpenAIEngine)
    return engine


async def text(engine: OpenAIEngine) -> str:
    chat = GenerateRequest(messages=[Message(role="user", content="Hello")])
    return "".join([item.text async for item in engine.generate("job_x-1", chat) if isinstance(item, Delta)])


# A changed value of each operational field; the others are those of `relayed`.
CHANGED: dict[str, Any] = {
    "description": "other",
    "max_logprob_values": 7,
    "slots": 3,
    "modalities": ["image"],
    "cache": {"ttl": 60},
    "context": {"strategy": "sliding_window"},
    "token_limits": {"max_output": 9},
    "price": {"input": 1, "output": 2},
}
CHANGED_OPTIONS: dict[str, Any] = {
    "endpoints": [{"api_key_env": "KEY_A", "weight": 2}, {"api_key_env": "KEY_B", "weight": 9, "name": "b"}],
    "health_path": "/elsewhere",
    "health_interval_s": 77,
    "connect_timeout_s": 1.5,
    "read_timeout_s": 1.5,
    "max_retries": 1,
    "max_wait_s": 99,
    "stall_timeout_s": 99,
    "max_concurrency": 5,
    "requests_per_minute": 66,
    "tokens_per_minute": 666,
    "log_error_texts": True,
    "extra_body": ["beta"],
    "detect_max_model_len": False,
    "cache_salt": True,
}


def test_each_operational_field_is_changed() -> None:
    assert CHANGED.keys() == operational_fields(OpenAIModel)
    assert CHANGED_OPTIONS.keys() | {"base_url", "api_key_env"} == operational_fields(OpenAIOptions)


@pytest.mark.parametrize("field", [*CHANGED, *CHANGED_OPTIONS])
async def test_an_operational_field_changes_while_limits_breaker_and_keys_stay(
    upstreams: list[FaultyUpstream], start: Start, field: str
) -> None:
    upstream = upstreams[0]
    old = relayed(upstream)
    worker = await start(old)
    engine = upstream_engine(worker)
    for _ in range(FAILURES):
        engine.gate.failed("job", "HTTP 503", by_request=False)
    opened = engine.gate.breaker
    assert opened is not None
    assert engine.gate.requests is not None
    assert engine.gate.tokens is not None
    engine.gate.requests.take(20)
    engine.gate.tokens.take(400)
    refused = list(engine._endpoints)[1]
    engine._endpoints.failed(refused, "the key was refused", of_key=True)

    if field == "endpoints":
        new = relayed(upstream, endpoints=[{"base_url": upstream.url, **one} for one in CHANGED_OPTIONS[field]])
    elif field in CHANGED_OPTIONS:
        new = relayed(upstream, **{field: CHANGED_OPTIONS[field]})
    else:
        new = relayed(upstream, {field: CHANGED[field]})
    assert new != old
    assert await worker.apply(new) is ReloadResult.APPLIED
    engine = upstream_engine(worker)
    assert engine._model is new
    assert engine.fingerprint == old.fingerprint
    assert worker.runner.slot_pool.slots == new.slots
    context = worker.runner.context
    max_output = None if new.token_limits is None else new.token_limits.max_output
    assert (context.provider, context.revision, context.max_output) == (new.provider, new.revision, max_output)
    assert engine.gate.breaker is opened
    assert engine.gate.requests is not None
    assert engine.gate.tokens is not None
    assert engine.gate.requests.per_second == (new.requests_per_minute or 0) / 60
    assert engine.gate.requests.wait_s(1) > 10, "what was used of the limit stays used"
    assert engine.gate.tokens.wait_s(0) > 20
    assert list(engine._endpoints.states.values()) == [True, False], "the key stays set aside"
    assert {endpoint.variable for endpoint in engine._endpoints if endpoint.available} == {"KEY_A"}


async def test_options_take_effect_for_new_requests(upstreams: list[FaultyUpstream], start: Start) -> None:
    first, second = upstreams
    worker = await start(single(first))
    first.answers = [error_answer(503)]
    with pytest.raises(UpstreamBusy):
        await text(upstream_engine(worker))
    await worker.apply(single(first, max_retries=1))
    first.answers = [error_answer(503)]
    assert await text(upstream_engine(worker))
    await worker.apply(single(first, api_key_env="KEY_A"))
    assert await text(upstream_engine(worker))
    assert first.seen[-1].headers["authorization"] == "Bearer sk-KEY_A-0123456789abcdef"

    gate = upstream_engine(worker).gate
    for _ in range(FAILURES):
        gate.failed("job", "HTTP 503", by_request=False)
    assert gate.holding
    await worker.apply(single(second, api_key_env="KEY_A"))
    assert upstream_engine(worker).gate is gate
    assert not gate.holding, "failures of an upstream that is not used any more do not hold back the new one"
    assert await text(upstream_engine(worker))
    assert len(second.seen) == 1
    assert gate.breaker is None

    gate.limited(60)
    assert gate.holding
    await worker.apply(single(second, api_key_env="KEY_A", max_retries=2))
    assert gate.holding, "the limit is that of the same key"
    await worker.apply(single(first, api_key_env="KEY_B"))
    assert not gate.holding


async def test_a_running_request_finishes_with_the_old_options(upstreams: list[FaultyUpstream], start: Start) -> None:
    first, second = upstreams
    worker = await start(single(first))
    earlier = upstream_engine(worker)
    first.default = Answer(3, pause_s=0.05)
    running = asyncio.create_task(text(earlier))
    await asyncio.wait_for(first.arrived.wait(), 20)
    await worker.apply(single(second))
    assert len(await asyncio.wait_for(running, 20)) == len(await text(upstream_engine(worker)))
    assert (len(first.seen), len(second.seen)) == (1, 1)
    await worker.current.stop_unused(lambda engine: False)
    assert earlier._session.closed
    assert not upstream_engine(worker)._session.closed


async def test_an_entry_that_cannot_be_used_changes_nothing(upstreams: list[FaultyUpstream], start: Start) -> None:
    worker = await start(single(upstreams[0], requests_per_minute=60))
    engine = upstream_engine(worker)
    with pytest.raises(InvalidRequest, match="KEY_C is not set"):
        await worker.apply(single(upstreams[0], requests_per_minute=90, api_key_env="KEY_C"))
    assert upstream_engine(worker) is engine
    assert engine.gate.requests is not None
    assert engine.gate.requests.per_second == 1


async def test_the_same_entry_again_is_no_change(upstreams: list[FaultyUpstream], start: Start) -> None:
    worker = await start(single(upstreams[0]))
    engine = upstream_engine(worker)
    assert await worker.apply(single(upstreams[0])) is ReloadResult.APPLIED
    assert upstream_engine(worker) is engine
