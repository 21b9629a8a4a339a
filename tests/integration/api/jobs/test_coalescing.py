"""Identical requests in flight: one generation, with a job and a stream for each request."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from api.cache.response_cache import ResponseCache
from api.cache.store import CacheStore
from api.keys.principal import Principal
from shared.config.models.loader import Registry
from shared.config.models.simulated import SimulatedModel
from shared.domain.answer_options import CacheControl, CacheOptions, RequestOptions
from shared.domain.decisions import CacheOutcome, Decisions, RouteDecision
from shared.domain.errors import ErrorCode, InvalidRequest
from shared.domain.events import Event, EventType, UpstreamState, parse_archive
from shared.domain.events import event as event_of
from shared.domain.job import Job, JobStatus, Usage
from shared.domain.new_job import Idempotency, NewJob
from shared.domain.priorities import Hint, to_front
from shared.domain.request import GenerateRequest, Sampling
from tests.integration.shared.postgres.test_state_machine import MODEL, WITHIN_S, Worker, World
from tests.support.metrics import api_metrics
from tests.support.steered_engine import Call, text_of_tokens
from tests.support.waiting import eventually
from workers.engines.base import EngineError
from workers.engines.resume import Resume
from workers.execution.attempts.context import InterruptReason
from workers.execution.model_context import with_model

ANSWER = RequestOptions(cache=CacheOptions())


class Coalescing(World):
    """API, workers and servers. All requests are the same, and coalesced."""

    def prepare(self) -> None:
        registry = Registry({MODEL: SimulatedModel(name=MODEL, engine="simulated")})
        self.service._cache = ResponseCache(registry, CacheStore(self.database), self.store, api_metrics())

    def new(self, **changes: Any) -> NewJob:
        new = NewJob(self.owner, MODEL, 3, GenerateRequest(prompt="x"), options=ANSWER)
        return replace(new, **changes)

    async def ask(self, **changes: Any) -> Job:
        job, created = await self.service.submit(Principal.of(self.owner), self.new(**changes))
        assert created
        return job

    async def lead(self, tokens: int = 0, followers: int = 1, **changes: Any) -> tuple[Call, Job, list[Job]]:
        """A running leader with some tokens, and its followers."""
        leader = await self.ask(**changes)
        call = await self.workers[0].deliver(leader.id)
        assert call is not None
        followed = [await self.ask(**changes) for _ in range(followers)]
        assert {job.follows for job in followed} <= {leader.id}
        await self.tokens(self.workers[0], call, tokens)
        return call, leader, followed

    def stream(self, job: Job, after: int = 0) -> asyncio.Task[list[Event]]:
        async def events() -> list[Event]:
            return [event async for batch in self.service.follow(job.id, after) for event in batch]

        return asyncio.create_task(events())

    async def read(self, job: Job) -> Job:
        return await self.service.get(job.id, self.owner.project_id)

    async def is_released(self, job: Job) -> bool:
        return (await self.read(job)).follows is None

    async def until_status(self, job: Job, status: JobStatus) -> None:
        async def has_status() -> bool:
            return (await self.read(job)).status is status

        await eventually(has_status, f"it is {status}")

    async def key_of(self, job: Job) -> bytes | None:
        key: bytes | None = (await self.row(job.id)).cache_key
        return key

    async def until_read(self, job_id: str, seq: int) -> None:
        """Wait until the reader of a job has received the event with this number."""

        async def read() -> bool:
            return any(reader.after >= seq for reader in self.hub._readers.get(job_id, ()))

        await eventually(read, "the reader receives it")

    async def detach(self, job_ids: list[str], leader: str = "job_other") -> None:
        """Let jobs follow another job, although that may have ended."""
        await self._change("UPDATE jobs SET follows = :leader WHERE id = ANY(:ids)", ids=job_ids, leader=leader)


async def finished(task: asyncio.Task[list[Event]]) -> list[Event]:
    return await asyncio.wait_for(task, WITHIN_S)


def text_of(events: list[Event]) -> str:
    deltas = (event.delta() for event in events if event.type is EventType.DELTA)
    return "".join(delta.text for delta in deltas if delta.index == 0)


def content_of(events: list[Event]) -> list[bytes]:
    """The events of a job that has ended, without its times."""
    *others, last = events
    payload = {name: value for name, value in last.payload().items() if name != "timings"}
    return [event.line() for event in (*others, event_of(last.seq, last.type, payload))]


def counted_tokens(worker: Worker) -> tuple[float, float]:
    """The tokens of prompts and completions in a worker's metrics."""
    metrics = worker.runner.context.metrics
    prompt, completion = (
        sum(sample.value for sample in next(iter(counter.collect())).samples if sample.name.endswith("_total"))
        for counter in (metrics.prompt_tokens, metrics.completion_tokens)
    )
    return prompt, completion


async def test_a_hundred_identical_requests_are_one_generation(world: Coalescing) -> None:
    jobs = await asyncio.gather(*(world.ask() for _ in range(100)))
    (leader,) = [job for job in jobs if job.follows is None]
    assert {job.follows for job in jobs if job is not leader} == {leader.id}
    assert [job.decisions.cache and job.decisions.cache.outcome for job in (leader, *jobs)].count("COALESCED") == 99
    streams = [world.stream(job) for job in jobs]
    waits = [asyncio.create_task(world.service.ended(job)) for job in jobs]
    for job in jobs:
        if job is not leader:
            assert await world.workers[1].deliver(job.id) is None, "a follower is not run"
    call = await world.workers[0].deliver(leader.id)
    assert call is not None
    await world.tokens(world.workers[0], call, 5)
    late = await world.ask()
    await world.finish(world.workers[0], call, "stop")

    first, *others = [content_of(await finished(stream)) for stream in [*streams, world.stream(late)]]
    assert all(events == first for events in others), "each token once, in the same events"
    for job in await asyncio.wait_for(asyncio.gather(*waits), WITHIN_S):
        assert (job.status, job.output[0].text) == (JobStatus.COMPLETED, text_of_tokens(6))
        assert (job.attempt, job.fingerprint) == (int(job.id == leader.id), "fp_steered")
        assert job.usage is not None
        assert min(job.timings().values()) >= 0
    assert content_of(await finished(world.stream(late))) == first, "replayed"


async def test_the_cancellation_of_a_follower_does_not_concern_others(world: Coalescing) -> None:
    call, leader, (first, second) = await world.lead(3, followers=2)
    streams = [world.stream(job) for job in (leader, first, second)]
    await world.until_read(first.id, 2)
    cancelled = await world.service.cancel(first.id, world.owner.project_id)
    assert cancelled.status is JobStatus.CANCELLED
    await world.tokens(world.workers[0], call, 2)
    await world.finish(world.workers[0], call, "stop")
    events, ended, others = [await finished(stream) for stream in streams]
    assert content_of(others) == content_of(events)
    assert (ended[-1].type, text_of(ended)) == (EventType.CANCELLED, text_of_tokens(3))
    job = await world.read(first)
    assert (job.status, job.output[0].text) == (JobStatus.CANCELLED, text_of_tokens(3)), "with the output so far"
    assert [event.line() for event in await finished(world.stream(job))] == [event.line() for event in ended]
    assert (await world.read(second)).output[0].text == text_of_tokens(6)


async def test_a_cancelled_leader_that_waits_leaves_the_lead_to_the_oldest_follower(world: Coalescing) -> None:
    leader, oldest, other = [await world.ask() for _ in range(3)]
    stream = world.stream(other)
    await world.service.cancel(leader.id, world.owner.project_id)
    assert (await world.read(leader)).status is JobStatus.CANCELLED
    assert [(await world.read(job)).follows for job in (oldest, other)] == [None, oldest.id]
    assert world.sent == [to_front(Hint(oldest.id, MODEL, 3))]
    assert (await world.ask()).follows == oldest.id
    call = await world.workers[0].deliver(oldest.id)
    assert call is not None
    await world.finish(world.workers[0], call, "stop")
    assert text_of(await finished(stream)) == text_of_tokens(1)


@pytest.mark.parametrize("end", ["failed", "lost"])
async def test_streams_of_followers_go_on_without_their_leader(world: Coalescing, end: str) -> None:
    """No token is lost or repeated, and each follower that continues does so after the leader's last token."""
    call, leader, followers = await world.lead(5, followers=2)
    streams = [world.stream(job) for job in followers]
    for job in followers:
        await world.until_read(job.id, 2)
    worker = world.workers[0]
    if end == "failed":
        await world.fail(worker, call)
    else:
        await world.kill(0)
        await world.service.cancel(leader.id, world.owner.project_id)
        await world.sweep()
    assert (await world.read(leader)).status is (JobStatus.FAILED if end == "failed" else JobStatus.CANCELLED)
    rows = [await world.read(job) for job in followers]
    assert [row.continues for row in rows] == [leader.id, leader.id if end == "failed" else None]
    assert [row.follows for row in rows] == [None, None if end == "failed" else followers[0].id]
    for row in rows:
        if row.follows is None:
            again = await world.deliver(world.workers[1], row.id, 2)
            assert again is not None
            assert again.prior == text_of_tokens(5)
            await world.finish(world.workers[1], again, "stop")
    for job, stream in zip(followers, streams, strict=True):
        events = await finished(stream)
        assert text_of(events) == text_of_tokens(8)
        assert EventType.RESTARTED not in {event.type for event in events}
        ended = await world.read(job)
        assert (ended.status, ended.output[0].text) == (JobStatus.COMPLETED, text_of_tokens(8))
        assert ended.usage is not None
        assert ended.usage.completion_tokens == 8
        assert [event.line() for event in await finished(world.stream(job))] == [event.line() for event in events]
    if end == "failed":
        assert (counted_tokens(worker), counted_tokens(world.workers[1])) == ((3, 5), (6, 6))


@pytest.mark.parametrize("why", ["cancelled", "late"])
@pytest.mark.parametrize("resume", [Resume.EXACT, Resume.NONE])
async def test_the_generation_of_a_cancelled_leader_continues_for_its_followers(
    world: Coalescing, why: str, resume: Resume
) -> None:
    """It is the same request in the engine, so that it does not matter whether that could resume it."""
    worker = world.workers[0]
    worker.engine.several_choices = resume
    request = GenerateRequest(prompt="x", sampling=Sampling(n=1 if resume is Resume.EXACT else 2))
    leader = await world.ask(request=request, finish_within_s=3600)
    call = await world.deliver(worker, leader.id, 5)
    assert call is not None
    call.accept(UpstreamState("resp_1"))
    heir, other, _ = followers = [await world.ask(request=request) for _ in range(3)]
    streams = [world.stream(job) for job in (leader, *followers)]
    for job in followers:
        await world.until_read(job.id, 3)
    if why == "cancelled":
        await world.service.cancel(leader.id, world.owner.project_id)
        await worker.heartbeat.renew()
    else:
        worker.runner.stop(leader.id, InterruptReason.DEADLINE_EXCEEDED)
    first = await finished(streams[0])
    assert (first[-1].type, text_of(first)) == (EventType.CANCELLED, text_of_tokens(5))
    ended = await world.read(leader)
    assert ended.error is not None
    assert ended.error.code == (ErrorCode.CANCELLED if why == "cancelled" else ErrorCode.DEADLINE_EXCEEDED)
    assert [(await world.read(job)).follows for job in followers] == [None, heir.id, heir.id]

    await world.tokens(worker, call, 2)
    await worker.heartbeat.renew()
    await worker.heartbeat.renew()
    assert (await world.read(heir)).status is JobStatus.IN_PROGRESS, "its claim is that of a running job"
    if why == "late":
        await world.service.cancel(heir.id, world.owner.project_id)
        await worker.heartbeat.renew()
        assert (await finished(streams[1]))[-1].type is EventType.CANCELLED
        assert (await world.read(other)).status is JobStatus.IN_PROGRESS
        await world.tokens(worker, call, 1)
    call.finish("stop")
    expected = 8 if why == "cancelled" else 9
    for job, stream in list(zip(followers, streams[1:], strict=True))[why == "late" :]:
        events = await finished(stream)
        assert text_of(events) == text_of_tokens(expected)
        assert EventType.RESTARTED not in {event.type for event in events}
        done = await world.read(job)
        assert (done.status, done.output[0].text) == (JobStatus.COMPLETED, text_of_tokens(expected))
        assert [event.line() for event in await finished(world.stream(job))] == [event.line() for event in events]
    choices = request.sampling.n
    assert counted_tokens(worker) == (3, expected * choices), "once, although each job reports its own"
    continued = await world.read(heir if why == "cancelled" else other)
    assert continued.decisions.cache is not None
    assert (continued.usage, continued.decisions.cache.inherited) == (
        Usage(3, 0, expected * choices),
        Usage(3, 0, (5 if why == "cancelled" else 7) * choices).stored(),
    )
    assert worker.engine.calls == {}, "it was one generation"
    assert worker.engine.cancelled == [], "nor was the upstream's request cancelled"
    assert worker.runner.idle


async def test_followers_of_a_job_whose_worker_is_lost_wait_for_the_next(world: Coalescing) -> None:
    _, leader, (follower,) = await world.lead(3)
    stream = world.stream(follower)
    await world.kill(0)
    await world.sweep()
    assert (await world.read(follower)).follows == leader.id
    call = await world.deliver(world.workers[1], leader.id, 2)
    assert call is not None
    await world.finish(world.workers[1], call, "stop")
    assert text_of(await finished(stream)) == text_of_tokens(6)
    assert (await world.read(follower)).attempts == ()


async def test_an_answer_that_was_cut_is_one_too(world: Coalescing) -> None:
    call, _, (follower,) = await world.lead(3)
    await world.finish(world.workers[0], call, "length")
    job = await world.read(follower)
    assert (job.status, job.output[0].finish_reason) == (JobStatus.INCOMPLETE, "length")


async def test_deadlines_of_followers_are_their_own(world: Coalescing) -> None:
    """A follower has been started when its leader was."""
    leader = await world.ask()
    late = await world.ask(start_within_s=60)
    await world.pass_deadline(late.id)
    await world.sweep()
    assert (await world.read(late)).status is JobStatus.EXPIRED
    begun, hurried = await world.ask(start_within_s=60), await world.ask(start_within_s=60, finish_within_s=60)
    call = await world.deliver(world.workers[0], leader.id, 3)
    assert call is not None
    stream = world.stream(hurried)
    await world.until_read(hurried.id, 2)
    await world.pass_deadline(begun.id)
    await world.pass_deadline(hurried.id)
    await world.sweep()
    job = await world.read(hurried)
    assert job.error is not None
    assert (job.status, job.error.code) == (JobStatus.CANCELLED, ErrorCode.DEADLINE_EXCEEDED)
    assert "Cancel-After" in job.error.message
    assert text_of(await finished(stream)) == job.output[0].text == text_of_tokens(3)
    await world.finish(world.workers[0], call, "stop")
    assert (await world.read(begun)).status is JobStatus.COMPLETED


async def test_a_reader_resumes_a_follower_at_its_cursor(world: Coalescing) -> None:
    call, _, (follower,) = await world.lead(3)
    with pytest.raises(InvalidRequest):
        await world.service.check_cursor(follower, 9, "starting_after")
    assert await world.service.check_cursor(follower, 2, "starting_after")
    stream = world.stream(follower, 2)
    await world.finish(world.workers[0], call, "stop")
    events = await finished(stream)
    archived = parse_archive(await world.store.archived_log(follower.id) or "")
    assert [event.line() for event in events] == [event.line() for event in archived[2:]]
    assert not await world.service.check_cursor(await world.read(follower), archived[-1].seq, "starting_after")


@pytest.mark.parametrize("status", ["completed", "failed"])
async def test_a_follower_that_was_committed_after_its_leaders_end(world: Coalescing, status: str) -> None:
    """The process that inserted it died, or the end was being committed."""
    call, leader, (follower, other) = await world.lead(2, followers=2)
    await world.detach([follower.id, other.id])
    await (world.fail(world.workers[0], call) if status == "failed" else world.finish(world.workers[0], call, "stop"))
    await world.detach([follower.id, other.id], leader.id)
    # A reader that finds it settles it at once, and a sweep finds it without one.
    await world.service.wait_for_end(leader.id)
    stream = world.stream(follower)
    if status == "completed":
        assert text_of(await finished(stream)) == text_of_tokens(3)
    await world.sweep()
    for job in (follower, other):
        row = await world.read(job)
        if status == "completed":
            assert (row.status, row.output[0].text) == (JobStatus.COMPLETED, text_of_tokens(3))
        else:
            assert (row.status, row.follows, row.continues) == (JobStatus.QUEUED, None, leader.id)
            again = await world.deliver(world.workers[1], job.id)
            assert again is not None
            assert again.prior == text_of_tokens(2)
            await world.finish(world.workers[1], again, "stop")
    assert text_of(await finished(stream)) == text_of_tokens(3)


async def test_a_job_follows_none_that_it_would_wait_for_longer(world: Coalescing) -> None:
    leader = await world.ask(priority=5)
    urgent = await world.ask(priority=1)
    assert (urgent.follows, await world.key_of(urgent)) == (None, None)
    assert (await world.ask(priority=5)).follows == leader.id
    await world.workers[0].deliver(leader.id)
    assert (await world.ask(priority=1)).follows == leader.id, "it runs"


async def test_no_job_waits_for_one_that_a_limit_delays(world: Coalescing) -> None:
    """As with a soft limit of the first one's key, which the others' do not have."""
    delayed = await world.ask(delay_s=100)
    assert delayed.not_before is not None
    assert await world.key_of(delayed) is None
    leader, follower = [await world.ask() for _ in range(2)]
    assert (leader.follows, follower.follows) == (None, leader.id)
    assert (await world.ask(delay_s=100)).follows is None
    assert await world.workers[0].deliver(delayed.id) is None
    call = await world.deliver(world.workers[0], leader.id)
    assert call is not None
    await world.finish(world.workers[0], call, "stop")
    await world.until_status(follower, JobStatus.COMPLETED)
    assert (await world.read(delayed)).not_before == delayed.not_before


NEW_ANSWER = replace(ANSWER, cache_control=CacheControl(no_cache=True))


async def test_jobs_that_run_beside_a_leader_store_the_newer_answer(
    world: Coalescing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are inserted at the first try."""
    runner = world.workers[0].runner
    runner.use(with_model(runner.context, SimulatedModel(name=MODEL, engine="simulated")))  # so that answers are stored
    tries: list[NewJob] = []
    coalesce = world.store.coalesce

    async def counted(new: NewJob, *others: Any, **options: Any) -> tuple[Job, bool] | None:
        tries.append(new)
        return await coalesce(new, *others, **options)

    monkeypatch.setattr(world.store, "coalesce", counted)
    leader = await world.ask(priority=5)
    new, urgent = beside = [await world.ask(options=NEW_ANSWER), await world.ask(priority=1)]
    assert len(tries) == 3
    for job in beside:
        assert job.follows is None
        assert job.decisions.cache is not None
        assert job.decisions.cache.outcome == CacheOutcome.MISS
    assert (await world.ask(priority=5)).follows == leader.id
    for tokens, (job, newest) in enumerate([(new, new), (urgent, urgent), (leader, urgent)], 2):
        call = await world.deliver(world.workers[0], job.id, tokens)
        assert call is not None
        await world.finish(world.workers[0], call, "stop")
        hit = await world.ask()
        assert hit.decisions.cache is not None
        assert (hit.status, hit.decisions.cache.source) == (JobStatus.COMPLETED, newest.id)
        assert hit.output == (await world.read(newest)).output


async def test_followers_with_an_idempotency_key(world: Coalescing) -> None:
    leader = await world.ask()
    submits = (world.service.submit(Principal.of(world.owner), world.new(), Idempotency("a", "1")) for _ in range(3))
    results = await asyncio.gather(*submits)
    assert len({job.id for job, _ in results}) == 1
    assert sorted(created for _, created in results) == [False, False, True]
    assert {job.follows for job, _ in results} == {leader.id}


async def test_a_log_that_redis_has_lost(world: Coalescing) -> None:
    """The followers' readers are told to begin anew, after numbers that none of them has received."""
    call, _, (follower,) = await world.lead(3)
    stream = world.stream(follower)
    await world.until_read(follower.id, 2)
    await world.workers[0].hold_flushes()
    call.fail(EngineError("it failed"))
    await asyncio.wait_for(call.ended.wait(), WITHIN_S)
    await eventually(lambda: world.is_released(follower), "it is released")
    await world.wipe_redis()
    again = await world.deliver(world.workers[1], follower.id, 2)
    assert again is not None
    assert again.prior == ""
    await world.finish(world.workers[1], again, "stop")
    events = await finished(stream)
    assert [event.seq for event in events] == sorted({event.seq for event in events})
    after = [event.type for event in events].index(EventType.RESTARTED)
    assert text_of(events[after:]) == text_of_tokens(3)


async def test_followers_of_a_job_that_moves_to_another_model_are_jobs_of_their_own(world: Coalescing) -> None:
    """They receive nothing of the other model's answer, and can move too."""
    routed = Decisions(route=RouteDecision(route="auto", rule="r", fallbacks=("n",)))
    leader = await world.ask(decisions=routed)
    call = await world.workers[0].deliver(leader.id)
    assert call is not None
    first, second = await world.ask(), await world.ask(decisions=routed)
    assert {job.follows for job in (first, second)} == {leader.id}
    streams = [world.stream(job) for job in (leader, first, second)]
    await world.until_read(leader.id, 1)
    await world.fail(world.workers[0], call)
    assert (await world.read(leader)).model == "n"
    for job in (first, second):
        assert await world.is_released(job)
        assert await world.key_of(job) is None
    assert (await world.read(first)).model == MODEL
    late = await world.ask()
    assert late.follows is None, "the answer will be another model's"

    for job, tokens in ((leader, 5), (first, 2)):
        run = await world.workers[0].deliver(job.id)
        assert run is not None
        await world.tokens(world.workers[0], run, tokens)
        await world.finish(world.workers[0], run, "stop")
    run = await world.workers[1].deliver(second.id)
    assert run is not None
    await world.fail(world.workers[1], run)
    assert (await world.read(second)).model == "n"
    run = await world.workers[1].deliver(second.id)
    assert run is not None
    await world.finish(world.workers[1], run, "stop")
    answers = [await finished(stream) for stream in streams]
    assert [text_of(events) for events in answers] == [text_of_tokens(6), text_of_tokens(3), text_of_tokens(1)]
    assert not any(event.type is EventType.RESTARTED for events in answers for event in events)
    assert (await world.ask()).follows == late.id, "nothing was stored"
