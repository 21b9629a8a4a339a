"""Rate limits in one API process: what is taken for a job, what is given back, and what happens without Redis."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from api.context.window import ContextWindow
from api.http.rate_limits import RATE_LIMIT_STATUS, RateLimitStatus
from api.limits import limiter as module
from api.limits import settlement as settlement_module
from api.limits.estimate import ASSUMED_OUTPUT, TokenEstimator
from api.limits.limiter import NOTHING, RateLimiter, Taken
from api.limits.rules import Allowance, Limit, LimitBook, Measure, Mode
from api.limits.settlement import Settlement
from api.limits.store import LimitStore
from shared.config.models.loader import Registry, load_registry
from shared.domain.errors import RateLimited, Unavailable
from shared.domain.job import AttemptOutcome, Choice, Job, JobStatus, Usage
from shared.domain.ledger import Run
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Sampling
from shared.domain.result import build_result
from shared.postgres.job_store import JobStore
from shared.redis.connection import connect_redis
from shared.redis.rate_limits import Correction, Outcome, RateWindows, Window
from shared.telemetry.metrics import Metrics
from tests.conftest import Workers
from tests.support.metrics import api_metrics
from tests.support.ports import free_port
from tests.support.stack import write_models

PROMPT_BYTES = 300


def limit(owner: Owner, mode: Mode = Mode.HARD, **values: int) -> Limit:
    allowances = {Measure(name): Allowance(value, mode is Mode.SOFT, 7) for name, value in values.items()}
    return Limit(owner.project_id, None, None, None, allowances)


def job(owner: Owner, max_tokens: int | None = 50, **fields: Any) -> NewJob:
    request = GenerateRequest(prompt="x" * PROMPT_BYTES, sampling=Sampling(max_tokens=max_tokens))
    return NewJob(owner, "sim", 3, request, **fields)


@dataclass
class Process:
    """The parts of an API process; `limits` replaces its limits."""

    owner: Owner
    registry: Registry
    book: LimitBook
    limiter: RateLimiter
    settlement: Settlement
    metrics: Metrics
    windows: RateWindows
    clock: list[float]
    jobs: JobStore
    workers: Workers

    def limits(self, **values: int) -> None:
        self.book.replace([limit(self.owner, Mode.HARD, **values)])

    async def left(self, measure: Measure) -> int:
        (rule,) = self.book.rules(self.owner, "sim", (measure,))
        outcome = await self.windows.take([Window(rule.scope.window_key(measure), 0, rule.value)])
        return outcome.states[0].remaining

    async def submit(self, new: NewJob) -> Job:
        """Submit a job as the service does."""
        taken = await self.limiter.take(new)
        created, _ = await self.jobs.insert(replace(new, delay_s=taken.delay_s))
        self.settlement.job_created(created, taken)
        return created

    async def finish(self, job: Job, usage: Usage) -> None:
        """Run a job to its end."""
        worker = self.workers("w")
        claimed = await worker.claim(job.id)
        assert claimed is not None
        result, _ = await build_result(
            claimed,
            [],
            1,
            status=JobStatus.COMPLETED,
            output=(Choice(0, "x", "stop"),),
            usage=usage,
            failure=None,
            first_token_at=datetime.now(UTC),
            finished_at=datetime.now(UTC),
            outcome=AttemptOutcome.COMPLETED,
            runs={1: Run(usage.completion_tokens)},
        )
        assert await worker.finish(claimed.id, claimed.attempt, result)

    def count(self, name: str, *labels: str) -> float:
        counter = getattr(self.metrics, name)
        return float((counter.labels(*labels) if labels else counter)._value.get())


@pytest.fixture
def process(
    database: AsyncEngine, redis: Redis, owner: Owner, store: JobStore, workers: Workers, tmp_path: Path
) -> Process:
    return make_process(database, redis, owner, store, workers, tmp_path)


def make_process(
    database: AsyncEngine,
    redis: Redis,
    owner: Owner,
    store: JobStore,
    workers: Workers,
    folder: Path,
    *,
    without_redis: Literal["allow", "refuse"] = "allow",
) -> Process:
    registry = load_registry(write_models(folder / "models.yaml", [{"name": "sim", "engine": "simulated"}]))
    metrics, book, clock = api_metrics("sim"), LimitBook(), [1_800_000_000.5]
    windows = RateWindows(redis, lambda: clock[0])
    estimator = TokenEstimator(registry, ContextWindow(registry))
    limiter = RateLimiter(book, windows, estimator, metrics, without_redis=without_redis)
    settlement = Settlement(limiter, LimitStore(database))
    return Process(owner, registry, book, limiter, settlement, metrics, windows, clock, store, workers)


async def test_without_limits_redis_is_not_called(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    async def take(windows: object) -> Outcome:
        raise AssertionError("Redis was called")

    monkeypatch.setattr(process.windows, "take", take)
    assert await process.limiter.take(job(process.owner)) == NOTHING
    process.book.replace([limit(Owner(process.owner.project_id + 1, 1), requests_per_minute=1)])
    assert await process.limiter.take(job(process.owner)) == NOTHING
    process.limits(requests_per_minute=1)
    assert await process.limiter.take(job(process.owner, kind="summary")) == NOTHING


async def test_a_refusal_names_the_limit_and_the_wait_is_true(process: Process) -> None:
    process.limits(requests_per_minute=2, tokens_per_minute=10_000)
    for _ in range(2):
        await process.limiter.take(job(process.owner))
        process.clock[0] += 7
    with pytest.raises(RateLimited) as caught:
        await process.limiter.take(job(process.owner))
    error = caught.value
    for words in ("2 requests a minute", "this project", "limit_7", "Used 2"):
        assert words in error.message
    assert error.wait_s is not None
    assert await process.left(Measure.TOKENS) == 10_000 - 2 * 150, "the refused request has taken no tokens"
    process.clock[0] += error.wait_s
    await process.limiter.take(job(process.owner))
    assert process.count("rate_limited", "requests", "project", "refused") == 1


async def test_a_request_that_never_fits(process: Process) -> None:
    process.limits(tokens_per_minute=1000)
    with pytest.raises(RateLimited, match="Request too large: it needs 1100 tokens, and the limit is 1000") as caught:
        await process.limiter.take(job(process.owner, 1000))
    assert caught.value.wait_s is None
    await process.limiter.take(job(process.owner, None))  # the assumed output is cut to the limit
    assert await process.left(Measure.TOKENS) == 0


@pytest.mark.parametrize(("max_tokens", "choices", "output"), [(8000, 1, 8000), (8192, 1, 8092), (8100, 2, 2 * 8092)])
async def test_no_more_output_is_taken_than_the_context_has_room_for(
    process: Process, max_tokens: int, choices: int, output: int
) -> None:
    process.limits(tokens_per_minute=100_000)
    new = job(process.owner)
    sampling = Sampling(max_tokens=max_tokens, n=choices)
    await process.limiter.take(replace(new, request=new.request.model_copy(update={"sampling": sampling})))
    assert await process.left(Measure.TOKENS) == 100_000 - 100 - output


async def test_the_headers_have_the_tightest_limits(process: Process) -> None:
    owner = process.owner
    process.book.replace(
        [
            limit(owner, requests_per_minute=100, tokens_per_minute=1000),
            Limit(owner.project_id, None, None, "sim", {Measure.REQUESTS: Allowance(3, False, 8)}),
        ]
    )
    status = RateLimitStatus()
    RATE_LIMIT_STATUS.set(status)
    await process.limiter.take(job(owner))
    assert status.openai_headers() == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "1m1s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "850",
        "x-ratelimit-reset-tokens": "1m1s",
    }
    headers = status.anthropic_headers()
    assert headers["anthropic-ratelimit-tokens-remaining"] == "850"
    reset = datetime.fromisoformat(headers["anthropic-ratelimit-requests-reset"])
    assert 59 < (reset - datetime.now(UTC)).total_seconds() < 63


async def test_tokens_are_settled_when_the_job_has_ended(process: Process) -> None:
    """Whoever waits for it: nothing but the row of the job is read."""
    process.limits(requests_per_minute=100, tokens_per_minute=10_000)
    first, second = [await process.submit(job(process.owner, 4000)) for _ in range(2)]
    assert await process.left(Measure.TOKENS) == 10_000 - 2 * 4100
    await process.settlement.settle(everything=True)
    assert await process.left(Measure.TOKENS) == 10_000 - 2 * 4100, "neither has ended"
    await process.finish(first, Usage(prompt_tokens=80, completion_tokens=20))
    await process.settlement.settle(everything=True)
    assert await process.left(Measure.TOKENS) == 10_000 - 4100 - 100
    await process.settlement.settle(everything=True)
    assert await process.left(Measure.TOKENS) == 10_000 - 4100 - 100, "it is settled once"
    await process.finish(second, Usage(prompt_tokens=90, completion_tokens=10))
    await process.settlement.settle(everything=True)
    assert await process.left(Measure.TOKENS) == 10_000 - 200
    assert await process.left(Measure.REQUESTS) == 98


async def test_output_beyond_what_was_assumed_counts(process: Process) -> None:
    process.limits(tokens_per_minute=10_000)
    submitted = await process.submit(job(process.owner, None))
    assert await process.left(Measure.TOKENS) == 10_000 - 100 - ASSUMED_OUTPUT
    await process.finish(submitted, Usage(prompt_tokens=100, completion_tokens=8000))
    process.clock[0] += 600
    await process.settlement.settle(everything=True)
    assert await process.left(Measure.TOKENS) == 10_000 - (8100 - 100 - ASSUMED_OUTPUT)


async def test_a_prompt_beyond_its_estimate_counts_however_long_the_job_takes(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settlement_module, "WINDOW_S", -1)  # what was taken has left the window
    process.limits(tokens_per_minute=10_000)
    estimated = await process.submit(job(process.owner, 50))
    request = GenerateRequest(prompt=list(range(80)), sampling=Sampling(max_tokens=50))
    counted = await process.submit(replace(job(process.owner), request=request))
    await process.settlement.settle(everything=True)
    assert [job_id for *_, job_id, _ in process.settlement._due] == [estimated.id]
    process.clock[0] += 600
    for submitted in (estimated, counted):
        await process.finish(submitted, Usage(prompt_tokens=400, completion_tokens=20))
    await process.settlement.settle(everything=True)
    assert await process.left(Measure.TOKENS) == 10_000 - (400 + 20 - 100 - 50)


async def test_what_was_taken_for_no_job_is_given_back(process: Process) -> None:
    process.limits(requests_per_minute=2, tokens_per_minute=1000)
    taken = await process.limiter.take(job(process.owner))
    process.settlement.give_back(taken)
    await process.settlement.settle()
    assert (await process.left(Measure.REQUESTS), await process.left(Measure.TOKENS)) == (2, 1000)


async def test_soft_limits_delay_jobs(process: Process) -> None:
    process.book.replace([limit(process.owner, Mode.SOFT, requests_per_minute=1)])
    now, late = await process.submit(job(process.owner)), await process.submit(job(process.owner))
    assert (now.not_before, late.not_before is None) == (None, False)
    assert late.not_before is not None
    assert 59 < (late.not_before - late.created_at).total_seconds() < 61
    worker = process.workers("w")
    assert await worker.claim(late.id) is None
    assert await worker.claim(now.id) is not None
    stored = await process.jobs.get(late.id)
    assert stored is not None
    assert (stored.status, stored.not_before, stored.deferred_since) == (JobStatus.QUEUED, late.not_before, None)
    assert process.count("rate_limited", "requests", "project", "delayed") == 1


async def test_lines_of_batches_leave_a_part_to_others(process: Process) -> None:
    process.limits(requests_per_minute=10)

    async def line() -> Taken:
        return await process.limiter.take(job(process.owner), of_batch=True)

    for _ in range(8):
        await line()
    with pytest.raises(RateLimited):
        await line()
    for _ in range(2):
        await process.limiter.take(job(process.owner))
    process.limits(tokens_per_minute=100)
    assert (await line()).parts, "a line that is larger than the limit takes all of it"
    assert process.count("rate_limited", "requests", "project", "refused") == 0


@pytest.mark.parametrize("setting", ["allow", "refuse"])
async def test_without_redis(
    database: AsyncEngine,
    owner: Owner,
    store: JobStore,
    workers: Workers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    setting: Literal["allow", "refuse"],
) -> None:
    redis = connect_redis(f"redis://127.0.0.1:{free_port()}/0")
    process = make_process(database, redis, owner, store, workers, tmp_path, without_redis=setting)
    process.limits(requests_per_minute=1)
    for _ in range(3):
        if setting == "allow":
            assert await process.limiter.take(job(owner)) == NOTHING
        else:
            with pytest.raises(Unavailable, match="Rate limits cannot be checked"):
                await process.limiter.take(job(owner))
    assert process.count("rate_limits_unavailable", "allowed" if setting == "allow" else "refused") == 3
    assert not await process.limiter.settle([])
    await redis.aclose()


async def test_the_wait_of_several_prompts_is_that_for_all_of_them(process: Process) -> None:
    process.limits(requests_per_minute=4)
    for _ in range(3):
        await process.limiter.take(job(process.owner))
        process.clock[0] += 10
    taken, refused = [], []
    for _ in range(3):
        try:
            taken.append(await process.limiter.take(job(process.owner)))
        except RateLimited as error:
            refused.append(error)
    assert (len(taken), len(refused)) == (1, 2)
    assert refused[0].wait_s is not None
    together = await process.limiter.together(refused, taken)
    assert together.wait_s == pytest.approx(refused[0].wait_s + 10), "the first two requests have to leave the window"
    assert f"Try again in {together.wait_s:.3f} s." in together.message
    await process.limiter.settle(taken[0].returned())
    process.clock[0] += refused[0].wait_s
    assert await process.left(Measure.REQUESTS) == 2
    process.clock[0] += 10
    assert await process.left(Measure.REQUESTS) == 3
    more = [RateLimited("x", wait_s=1.0, asked={"k": (3, 4)}) for _ in range(2)]
    assert (await process.limiter.together(more, [])).wait_s is None, "they never fit together"


async def test_several_prompts_may_need_more_than_a_minute_of_a_soft_limit(process: Process) -> None:
    owner = process.owner
    tokens = Limit(owner.project_id, None, None, "sim", {Measure.TOKENS: Allowance(200, True, 8)})
    process.book.replace([limit(owner, requests_per_minute=3), tokens])
    for _ in range(2):
        await process.limiter.take(job(owner))
    taken = await process.limiter.take(job(owner))
    with pytest.raises(RateLimited) as caught:
        await process.limiter.take(job(owner))
    together = await process.limiter.together([caught.value], [taken])
    assert together.wait_s == caught.value.wait_s, "that of the hard limit"
    soft_alone = RateLimited("above an hour of waiting", wait_s=5.0)
    assert await process.limiter.together([soft_alone], [taken]) is soft_alone


async def test_limits_hold_while_the_event_loop_is_blocked(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer of Redis is there when the loop runs again, after the timeout."""
    await process.limiter.take_request(process.owner, "sim")  # connect, and load the script
    monkeypatch.setattr(module, "TIMEOUT_S", 0.02)
    process.limits(requests_per_minute=2)
    for taken in (True, True, False):
        # Called once the request has been sent.
        asyncio.get_running_loop().call_later(0.001, time.sleep, 0.1)
        if taken:
            assert (await process.limiter.take(job(process.owner))).parts
        else:
            with pytest.raises(RateLimited):
                await process.limiter.take(job(process.owner))
    asyncio.get_running_loop().call_later(0.001, time.sleep, 0.1)
    assert await process.limiter.settle([Correction("k", 1, 1)])
    assert process.count("rate_limits_unavailable", "allowed") == 0


async def test_a_redis_that_hangs_delays_requests_once(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a timeout, requests do not wait for Redis for a second."""
    calls = 0

    async def take(windows: object) -> Outcome:
        nonlocal calls
        calls += 1
        raise TimeoutError

    monkeypatch.setattr(process.windows, "take", take)
    process.limits(requests_per_minute=1)
    for _ in range(5):
        assert await process.limiter.take(job(process.owner)) == NOTHING
    assert calls == 1
    monkeypatch.setattr(module, "PAUSE_S", 0)
    process.limiter._retry_at = 0
    await process.limiter.take(job(process.owner))
    await process.limiter.take(job(process.owner))
    assert calls == 3
