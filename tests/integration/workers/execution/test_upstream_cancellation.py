"""An upstream's request is cancelled wherever its job ends, on real servers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.config.models.runpod import RunpodModel
from shared.domain.events import UpstreamState
from shared.domain.job import Job, JobStatus, Usage
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.result import CANCELLED, JobResult
from shared.domain.transcript import Transcript
from shared.postgres.claim_store import ClaimStore
from shared.postgres.job_ends import result_record
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from shared.recovery.sweeper import CANCELLATION_S, Sweeper
from shared.recovery.terminator import JobTerminator
from shared.redis.event_log import EventLog
from shared.runtime.aio import cancel_and_wait
from tests.conftest import Workers
from tests.integration.workers.execution.test_runner import WITHIN_S, Worker, working
from tests.support.metrics import api_metrics, worker_metrics
from tests.support.steered_engine import SteeredEngine
from tests.support.waiting import eventually
from workers.engines.base import EngineError, UpstreamError
from workers.engines.runpod.engine import RunpodEngine
from workers.execution.attempts.context import InterruptReason
from workers.execution.current_engine import CurrentEngine
from workers.execution.upstream_cancellation import cancel_requests
from workers.supervision import upstream_cancellations
from workers.supervision.upstream_cancellations import UpstreamCancellations

STATE = UpstreamState("resp_1", {"route": "a"})
METRICS = worker_metrics("m", "other")


class DeafUpstream(SteeredEngine):
    """Its upstream does not accept cancels; `arrived` is set at each, and then it `answers`."""

    def __init__(self, answer: Callable[[], object]) -> None:
        super().__init__()
        self.arrived = asyncio.Event()
        self._answer = answer

    async def cancel(self, state: UpstreamState) -> None:
        self.arrived.set()
        answer = self._answer()
        if isinstance(answer, Exception):
            raise answer
        await asyncio.Event().wait()


@pytest.fixture
async def queued(store: JobStore, workers: Workers, logs: EventLog, owner: Owner) -> Job:
    """A job that waits in the queue, with output of a request that its upstream still runs; no worker is up."""
    created, _ = await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="x"), finish_within_s=3600))
    async with working("gone", workers("gone"), logs) as worker:
        run, call = await worker.start(created)
        call.accept(STATE)
        await call.tokens(2)
        await worker.runner.requeue_all()
        assert await asyncio.wait_for(run, WITHIN_S) is None
        await worker.log_writer.drain(WITHIN_S)
        assert worker.engine.cancelled == []
    found = await store.get(created.id)
    assert found is not None
    return found


@pytest.fixture
def terminator(recovery_store: RecoveryStore, logs: EventLog) -> JobTerminator:
    return JobTerminator(recovery_store, logs, 60, api_metrics())


@pytest.fixture
def sweeper(recovery_store: RecoveryStore, terminator: JobTerminator) -> Sweeper:
    return Sweeper(
        recovery_store, terminator, lambda hint: None, api_metrics("m"), interval_s=1, lease_s=1, max_attempts=3
    )


async def change(database: AsyncEngine, statement: str) -> None:
    async with database.begin() as connection:
        await connection.execute(text(statement))


async def make_due(database: AsyncEngine) -> None:
    await change(database, "UPDATE upstream_cancellations SET due_at = now()")


async def cancelled_by(store: ClaimStore, model: str = "m") -> list[UpstreamState]:
    """What a worker of a model cancels in one turn."""
    engine = SteeredEngine()
    assert await cancel_requests(store, engine, METRICS, model) == len(engine.cancelled)
    return engine.cancelled


async def test_a_queued_job_that_is_cancelled(
    queued: Job, terminator: JobTerminator, workers: Workers, database: AsyncEngine
) -> None:
    """No worker is up; the next one of this model cancels its request, once."""
    assert await terminator.end(queued, JobStatus.CANCELLED, CANCELLED)
    assert await cancelled_by(ClaimStore(database, "v", "other"), "other") == []
    assert await cancelled_by(ClaimStore(database, "w", "m")) == [STATE]
    assert await cancelled_by(ClaimStore(database, "w", "m")) == []
    await make_due(database)
    assert await cancelled_by(workers("w")) == []


async def test_a_worker_checks_the_list_from_time_to_time(
    queued: Job, terminator: JobTerminator, workers: Workers, logs: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_cancellations, "INTERVAL_S", 0.01)
    async with working("w", workers("w"), logs) as worker:
        checking = asyncio.create_task(UpstreamCancellations(worker.runner, worker.store, METRICS, "m").run())
        await terminator.end(queued, JobStatus.CANCELLED, CANCELLED)

        async def cancelled() -> bool:
            return worker.engine.cancelled == [STATE]

        await eventually(cancelled, "the request is cancelled")
        await cancel_and_wait(checking)


async def test_a_queued_job_that_expires(
    queued: Job, sweeper: Sweeper, store: JobStore, workers: Workers, database: AsyncEngine
) -> None:
    await change(database, "UPDATE jobs SET finish_before = now() - interval '1 s'")
    await sweeper.sweep()
    found = await store.get(queued.id)
    assert found is not None
    assert found.status is JobStatus.CANCELLED
    assert await cancelled_by(workers("w")) == [STATE]


async def test_a_lost_job_that_is_being_cancelled(
    queued: Job, sweeper: Sweeper, store: JobStore, workers: Workers, logs: EventLog
) -> None:
    """Its worker dies before it has stopped the job."""
    async with working("w", workers("w"), logs) as worker:
        run, _ = await worker.start(queued)
        assert await store.mark_cancelling(queued.id)
        await sweeper.sweep()  # the worker has no lease
        assert await cancelled_by(workers("v")) == [STATE]
        await cancel_and_wait(run)


async def test_a_job_that_completes_cancels_nothing(
    queued: Job, workers: Workers, logs: EventLog, database: AsyncEngine
) -> None:
    async with working("w", workers("w"), logs) as worker:
        run, call = await worker.start(queued)
        call.finish("stop")
        assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    assert await cancelled_by(workers("w")) == []


async def test_a_request_that_takes_the_place_of_another(queued: Job, workers: Workers, logs: EventLog) -> None:
    """The engine does not know the earlier one, for example because the model has moved to another provider."""
    async with working("w", workers("w"), logs) as worker:
        run, call = await worker.start(queued)
        call.accept(STATE)
        call.accept(UpstreamState("run_2"))
        call.finish("stop")
        assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    assert await cancelled_by(workers("w")) == [STATE]


async def test_a_request_that_the_upstream_has_ended(queued: Job, workers: Workers, logs: EventLog) -> None:
    """It is not cancelled, neither when another takes its place nor when the job ends."""
    async with working("w", workers("w"), logs) as worker:
        run, call = await worker.start(queued)
        call.end_run()
        call.accept(UpstreamState("run_2"))
        call.end_run()
        call.fail(UpstreamError("The upstream failed."))
        assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.FAILED
    assert worker.engine.cancelled == []
    assert await cancelled_by(workers("w")) == []


@pytest.mark.parametrize(
    "hostile", [UpstreamState("resp_\0x"), UpstreamState("r", {"a": ["\0"]}), UpstreamState("\ud800")]
)
async def test_a_request_that_cannot_be_stored(
    queued: Job, workers: Workers, terminator: JobTerminator, hostile: UpstreamState
) -> None:
    """It keeps no job from ending."""
    store = workers("w")
    await store.add_cancellation("job_1", "m", hostile)
    assert (
        result_record(
            "job_1",
            1,
            JobResult(JobStatus.FAILED, queued.created_at, b"[]", Usage(0, 0, 0), None, None, (), b"", hostile),
        )["upstream"]
        is None
    )
    assert await terminator.end(queued, JobStatus.CANCELLED, CANCELLED)
    assert await cancelled_by(store) == [STATE]


async def test_a_worker_that_dies_while_it_cancels(
    queued: Job, terminator: JobTerminator, workers: Workers, database: AsyncEngine
) -> None:
    """Another one cancels the request again, but not at the same time."""
    await terminator.end(queued, JobStatus.CANCELLED, CANCELLED)
    dying = DeafUpstream(lambda: None)
    cancelling = asyncio.create_task(cancel_requests(workers("w"), dying, METRICS, "m"))
    await asyncio.wait_for(dying.arrived.wait(), WITHIN_S)
    assert await cancelled_by(workers("v")) == []
    cancelling.cancel()
    assert await cancelled_by(workers("v")) == []
    await make_due(database)
    assert await cancelled_by(workers("v")) == [STATE]


async def test_an_attempt_cancels_only_its_own_request(queued: Job, workers: Workers, logs: EventLog) -> None:
    """It does not wait for an upstream that does not answer the cancels of thousands of others."""
    async with working("w", workers("w"), logs) as worker:
        for position in range(3):
            await worker.store.add_cancellation(f"job_{position}", "m", UpstreamState(f"other_{position}", {}))
        run, call = await worker.start(queued)
        call.restart()
        call.accept(UpstreamState("resp_2"))
        call.fail(EngineError("The upstream does not end its answer."))
        assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.FAILED
        assert worker.engine.cancelled == [STATE, UpstreamState("resp_2")]
    assert len(await cancelled_by(workers("v"))) == 3


@pytest.mark.parametrize("replaced", [False, True])
async def test_the_log_says_first_that_nothing_resumes_a_request(
    queued: Job, workers: Workers, logs: EventLog, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    """If the worker died in between, the next attempt would resume a request that another worker cancels."""
    async with working("w", workers("w"), logs) as worker:
        add, resumable = worker.store.add_cancellation, []

        async def recorded(job_id: str, model: str, state: UpstreamState) -> None:
            resumable.append((await Transcript.of(await logs.read(job_id), 1)).upstream)
            await add(job_id, model, state)

        monkeypatch.setattr(worker.store, "add_cancellation", recorded)
        run, call = await worker.start(queued)
        new = UpstreamState("resp_2")
        if replaced:
            call.accept(new)
        else:
            call.restart()
        call.finish("stop")
        assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    assert resumable == [new if replaced else None]
    assert (await cancelled_by(workers("v")) == [STATE]) is replaced


async def test_an_attempt_that_has_lost_its_claim_cancels_nothing(
    queued: Job, workers: Workers, logs: EventLog
) -> None:
    """The attempt that has it may relay that request."""
    async with working("w", workers("w"), logs) as worker:
        run, call = await worker.start(queued)
        await logs.take_over(queued.id, call.attempt + 1)
        call.restart()
        call.accept(UpstreamState("resp_2"))
        assert await asyncio.wait_for(run, WITHIN_S) is None
        assert worker.engine.cancelled == []
    assert await cancelled_by(workers("v")) == []


async def test_a_stop_does_not_lose_a_request(
    queued: Job, workers: Workers, logs: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log does not name it any more, so it would run on."""
    async with working("w", workers("w"), logs) as worker:
        add, adding, goes_on = worker.store.add_cancellation, asyncio.Event(), asyncio.Event()

        async def slow(job_id: str, model: str, state: UpstreamState) -> None:
            adding.set()
            await goes_on.wait()
            await add(job_id, model, state)

        monkeypatch.setattr(worker.store, "add_cancellation", slow)
        run, call = await worker.start(queued)
        call.restart()
        await asyncio.wait_for(adding.wait(), WITHIN_S)
        worker.runner.stop(queued.id, InterruptReason.REQUEUED)
        goes_on.set()
        assert await asyncio.wait_for(run, WITHIN_S) is None
    assert await cancelled_by(workers("v")) == [STATE]


async def test_an_upstream_that_fails_is_asked_again_for_a_day(
    queued: Job,
    workers: Workers,
    logs: EventLog,
    sweeper: Sweeper,
    database: AsyncEngine,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shared.recovery.sweeper.CLEAN_UP_INTERVAL_S", 0.0)
    worker = Worker("w", workers("w"), logs, 4, None)
    worker.engine.cancel = DeafUpstream(lambda: UpstreamError("HTTP 503")).cancel  # type: ignore[method-assign]
    run, call = await worker.start(queued)
    call.fail(UpstreamError("The upstream does not end its answer."))
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.FAILED, "whatever the upstream answers"
    assert f"job={queued.id} model=m cannot cancel the upstream's request" in caplog.text
    await make_due(database)
    assert await cancel_requests(workers("w"), worker.engine, METRICS, "m") == 0
    async with database.connect() as connection:
        waits = await connection.scalar(text("SELECT due_at - now() > interval '25 s' FROM upstream_cancellations"))
    assert waits, "longer after each try"
    await sweeper.sweep()
    await make_due(database)
    assert await cancel_requests(workers("w"), worker.engine, METRICS, "m") == 0
    async with database.begin() as connection:
        await connection.execute(
            text("UPDATE upstream_cancellations SET created_at = now() - make_interval(secs => :s)"),
            {"s": CANCELLATION_S},
        )
    await sweeper.sweep()
    await make_due(database)
    assert await cancelled_by(workers("w")) == []
    assert "request resp_1 could not be cancelled, and may still run" in caplog.text


async def test_a_request_at_an_endpoint_that_the_entry_lacks_by_now(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the key that it was sent with can cancel it, whatever reloads have done since."""
    keys: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        keys.append(request.headers.get("Authorization"))
        return web.Response(status=503 if len(keys) == 1 else 200)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    store = workers("w")
    async with TestServer(app) as server:

        def engine(key: str) -> RunpodEngine:
            monkeypatch.setenv(key, f"rpa_{key}")
            options = {"base_url": str(server.make_url("/v2")), "api_key_env": key}
            spec = RunpodModel.model_validate({"name": "m", "engine": "runpod", "endpoint": "e1", "options": options})
            return RunpodEngine(spec, METRICS)

        first = engine("A")
        current = CurrentEngine(first)
        await current.start()
        state = first._endpoints.mark(UpstreamState("run_1", {"api": "runpod"}), next(iter(first._endpoints)))
        await store.add_cancellation("job_1", "m", state)
        assert await cancel_requests(store, current.engine, METRICS, "m") == 0, "the upstream is down"
        for key in ("B", "C"):
            await current.replace(engine(key))
            await current.stop_unused(lambda _: False)
            await store.add_cancellation("job_2", "m", state)
            assert await cancel_requests(store, current.engine, METRICS, "m") == 1
        await current.stop()
    assert keys == ["Bearer rpa_A"] * 3


async def test_which_answers_end_the_tries(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that has ended, or that the upstream does not know, need not be cancelled."""
    over, later = (200, 400, 404), (302, 401, 402, 409, 429, 502)
    statuses = iter([*over, *later])

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=next(statuses))

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    store = workers("w")
    async with TestServer(app) as server:
        monkeypatch.setenv("KEY", "rpa_1")
        options = {"base_url": str(server.make_url("/v2")), "api_key_env": "KEY"}
        spec = RunpodModel.model_validate({"name": "m", "engine": "runpod", "endpoint": "e1", "options": options})
        engine = RunpodEngine(spec, METRICS)
        await engine.start()
        state = engine._endpoints.mark(UpstreamState("run_1", {"api": "runpod"}), next(iter(engine._endpoints)))
        for _ in over:
            await store.add_cancellation("job_1", "m", state)
            assert await cancel_requests(store, engine, METRICS, "m") == 1
        for _ in later:
            await store.add_cancellation("job_1", "m", state)
            assert await cancel_requests(store, engine, METRICS, "m") == 0
        await engine.stop()
