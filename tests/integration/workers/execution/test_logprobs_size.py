"""The size of log probabilities: at most 1 KB a token with 20 alternatives, in a worker's memory and in Redis."""

from __future__ import annotations

import asyncio
import gc
import random
import tracemalloc
from collections.abc import AsyncGenerator

import orjson
from redis.asyncio import Redis

from shared.domain.events import Delta
from shared.domain.job import JobStatus
from shared.domain.logprobs import Candidate, encode_entry, entry_object
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Sampling
from shared.postgres.job_store import JobStore
from shared.redis import keys
from shared.redis.event_log import EventLog
from shared.runtime.aio import cancel_and_wait
from tests.conftest import Workers
from tests.support.metrics import worker_metrics
from workers.engines.base import NO_PRIOR, Prior, PromptInfo
from workers.execution.attempts.context import AttemptContext
from workers.execution.log_writer import LogWriter
from workers.execution.runner import Runner
from workers.execution.slots import SlotPool

TOKENS = 400
WARM_UP = 50
TOP = 20
BOUND = 1024
WORDS = [" the", " mill", " wheel", " water", "ing", " Mühle", " turns", " slowly", " downstream", ","]


def tokens() -> list[Delta]:
    """Tokens as a real model has them: log probabilities with all digits of a double."""
    rng = random.Random(1)
    deltas = []
    for position in range(TOKENS):
        top = [Candidate(rng.choice(WORDS), -rng.random() * 20) for _ in range(TOP)]
        reason = "stop" if position == TOKENS - 1 else None
        entry = encode_entry(top[0], top)
        deltas.append(Delta(0, top[0].token, (1000 + position,), reason, logprobs=(entry,)))
    return deltas


class OneEventPerToken:
    """An engine that generates the next token after the previous one is in Redis: the worst case."""

    slots = 1
    fingerprint = "fp"
    dead = False
    gate = None

    def __init__(self, log_writer: LogWriter) -> None:
        self.log_writer = log_writer
        self.retained = 0.0

    async def generate(
        self, request_id: str, request: GenerateRequest, prior: Prior = NO_PRIOR
    ) -> AsyncGenerator[Delta | PromptInfo, None]:
        yield PromptInfo(1)
        # The source of the tokens is encoded, so that they are new objects, as an engine's are.
        source = [(delta.text, delta.token_ids, delta.finish_reason, bytes(delta.logprobs[0])) for delta in tokens()]
        before = 0
        for position, (text, token_ids, reason, entry) in enumerate(source):
            if position == WARM_UP:
                before = used()
            if position == TOKENS - 1:
                self.retained = (used() - before) / (position - WARM_UP)
            yield Delta(0, text, (token_ids[0] + 1,), reason, logprobs=(bytes(bytearray(entry)),))
            await self.log_writer.drain(20)


def used() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def test_memory_per_token(workers: Workers, store: JobStore, logs: EventLog, owner: Owner, redis: Redis) -> None:
    log_writer = LogWriter(logs, workers("w").list_claims, late_s=60)
    engine = OneEventPerToken(log_writer)
    context = AttemptContext(
        worker="w",
        engine=engine,  # type: ignore[arg-type]
        store=workers("w"),
        logs=logs,
        log_writer=log_writer,
        log_ttl_s=60,
        max_attempts=3,
        send=lambda _: None,
        on_engine_death=lambda: None,
        metrics=worker_metrics(),
    )
    request = GenerateRequest(prompt="x", logprobs=TOP, sampling=Sampling(max_tokens=TOKENS))
    job, _ = await store.insert(NewJob(owner, "m", 3, request))
    writing = asyncio.create_task(log_writer.run())
    tracemalloc.start()
    try:
        assert await Runner(context, SlotPool(1, yields=False)).run(job.id) is JobStatus.COMPLETED
        await log_writer.drain(20)
    finally:
        tracemalloc.stop()
        await cancel_and_wait(writing)
    in_redis = (await redis.memory_usage(keys.log(job.id), samples=0) or 0) / TOKENS
    assert engine.retained <= BOUND, "bytes per token in the worker"
    assert in_redis <= BOUND, "bytes per token in Redis"
    done = await store.get(job.id)
    assert done is not None
    assert done.output[0].logprobs is not None
    expected = [entry_object(orjson.loads(delta.logprobs[0])) for delta in tokens()]
    assert [entry_object(entry) for entry in done.output[0].logprobs] == expected
