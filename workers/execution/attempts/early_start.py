"""Starts a new job in the engine while its claim is being committed.

The request travels beside the job's first hint (`shared.redis.carried_requests`). The engine's output stays in the
generator until the claim is committed: an early start takes its first item and nothing more, and publishes nothing. A
job whose claim fails, or differs from what was started, is aborted here, and the work is counted as thrown away.

A request may kill the engine before its claim is committed. It is judged with the other jobs in the engine
(`workers.execution.engine_deaths`), and the verdict applies to its job once that is claimed. If the claim fails, the
job stays queued, and its next start is not early, because its request was taken.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing

from redis.exceptions import RedisError

from shared.domain.job import Job
from shared.domain.request import GenerateRequest
from shared.domain.suspects import JobAtDeath, Verdict
from shared.redis.carried_requests import CarriedRequests
from shared.runtime.aio import cancel_and_wait
from workers.engines.base import Engine, EngineDead, EngineItem
from workers.engines.gate import Passage
from workers.execution.attempts.context import AttemptContext

logger = logging.getLogger(__name__)

# An attempt with another number has a history, which the engine would have to continue.
ATTEMPT = 1
# How long the engine may wait for the claim, whose commit takes milliseconds. During an outage of the database it would
# hold a connection to its upstream that nobody reads.
MAX_WAIT_S = 1.0
MAX_SALTS = 10_000


class EarlyStarts:
    """Starts the jobs of one worker early: those of its model, and of its adapters."""

    def __init__(self, requests: CarriedRequests, model: str, adapters: Collection[str] = ()) -> None:
        self.requests = requests
        self.model = model
        self.adapters = frozenset(adapters)
        # By project: a request is salted with that of its project, which only the row has.
        self._salts: dict[int, str] = {}

    def learn(self, job: Job) -> None:
        """Remember the salt of a claimed job's project. Before the first job of a project, none is started early."""
        if job.request.cache_salt is None:
            return
        if len(self._salts) >= MAX_SALTS:
            self._salts.clear()
        self._salts[job.owner.project_id] = job.request.cache_salt

    def salt(self, project_id: int) -> str | None:
        return self._salts.get(project_id)

    def begin(self, job_id: str, context: AttemptContext, passage: Passage) -> EarlyStart:
        """Start a job whose claim is about to be requested. `passage` counts the request once the engine has it."""
        return EarlyStart(job_id, self, context, passage)


class EarlyStart:
    """A job that is started while it is claimed. To be adopted or discarded once the claim is answered."""

    def __init__(self, job_id: str, starts: EarlyStarts, context: AttemptContext, passage: Passage) -> None:
        self._job_id = job_id
        self._starts = starts
        self._context = context
        self._passage = passage
        # When the engine received the request, on the monotonic clock; 0 before.
        self.started_at = 0.0
        self._request: GenerateRequest | None = None
        self._outputs: AsyncGenerator[EngineItem, None] | None = None
        # Whether the outputs are read by `outputs`, which also ends them.
        self._read = False
        self._closed = False
        # Whether the engine had died with the request before this was closed.
        self._died = False
        # What the death of the engine means for the job; None until that is judged.
        self.verdict: Verdict | None = None
        self._closing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._first = asyncio.create_task(self._start(), name=f"early-{job_id}")

    @property
    def engine(self) -> Engine:
        return self._context.engine

    @property
    def in_engine(self) -> bool:
        """Whether the engine has its request, or had it when it died."""
        if self._closed or self._outputs is None:
            return self._died
        if not self._first.done():
            return True
        if self._first.cancelled():
            return False
        error = self._first.exception()
        return self._first.result() is not None if error is None else isinstance(error, EngineDead)

    @property
    def died(self) -> bool:
        """Whether the engine died while it had the request."""
        if self._closed:
            return self._died
        failed = self._first.done() and not self._first.cancelled() and self._first.exception() is not None
        return self.in_engine and (failed or self.engine.dead)

    @property
    def silent(self) -> bool:
        """Whether it may not have generated a token: what follows the first item is not known."""
        return True

    @property
    def casualty(self) -> JobAtDeath:
        """The job, for the judgement of a death of its engine. It has no attempt yet, so none that died."""
        return JobAtDeath(self._job_id, suspect=False, exposures=0)

    async def adopt(self, job: Job, context: AttemptContext) -> bool:
        """Whether the claimed job can continue with this start, in this context. Otherwise it is discarded.

        One that the engine died with is adopted too: the attempt ends with that death.
        """
        usable = (
            self._outputs is not None
            and not self._closed
            and context is self._context
            and job.attempt == ATTEMPT
            and job.continues is None
            and not job.decisions.has_moved
            and job.request == self._request
        )
        if not usable:
            await self.discard()
            return False
        if self._timer is not None:
            self._timer.cancel()
        return True

    async def outputs(self) -> AsyncGenerator[EngineItem, None]:
        """What the engine emits, for the adopted job. Closing it aborts the request, as that of `Engine.generate`."""
        assert self._outputs is not None
        self._read = True
        self._count("kept")
        async with aclosing(self._outputs) as outputs:
            first = await self._first
            if first is None:
                return
            yield first
            async for item in outputs:
                yield item

    async def discard(self) -> None:
        """Abort the request, unless `outputs` reads it; returns after the engine has freed it."""
        if self._read:
            return
        self._close()
        if self._closing is not None:
            await asyncio.shield(self._closing)

    def _expire(self) -> None:
        """Wait no longer for the claim. If the engine has died, there is nothing to abort."""
        if not self.died:
            self._close()

    def _close(self) -> None:
        self._died, self._closed = self.died, True
        if self._outputs is not None and self._closing is None:
            self._closing = asyncio.create_task(self._abort(self._outputs), name=f"abort-{self._job_id}")

    async def _abort(self, outputs: AsyncGenerator[EngineItem, None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await cancel_and_wait(self._first)
        await outputs.aclose()
        self._count("discarded")
        logger.info("job=%s its early start is thrown away", self._job_id)

    async def _start(self) -> EngineItem | None:
        """Take the request and pass it to the engine. Returns the first item; None if there is none."""
        request = await self._take()
        if request is None or self._closed or self.engine.dead:
            return None
        context, self._request = self._context, request
        self._passage.claimed(request)
        self.started_at = time.monotonic()
        self._timer = asyncio.get_running_loop().call_later(MAX_WAIT_S, self._expire)
        self._outputs = context.engine.generate(f"{self._job_id}-{ATTEMPT}", request.for_provider(context.provider))
        return await anext(self._outputs, None)

    async def _take(self) -> GenerateRequest | None:
        """The job's request as it is expected in its row; None if it is not to be started early."""
        try:
            carried = await self._starts.requests.take(self._job_id, self._context.worker)
        except (RedisError, OSError) as error:
            logger.warning("job=%s cannot read the request beside its hint: %s", self._job_id, error)
            return None
        if carried is None or (salt := self._starts.salt(carried.project_id)) is None:
            return None
        request, is_adapter = carried.request, carried.model in self._starts.adapters
        if carried.model != self._starts.model and not is_adapter:
            return None
        tools = request.chat is not None and bool(request.chat.tools)
        if self._context.compilations is not None and (request.structured_outputs is not None or tools):
            return None  # it may have to wait for its turn
        request.cache_salt = salt
        # As `shared.postgres.claim_store` sets both.
        request.adapter = carried.model if is_adapter else None
        return request

    def _count(self, outcome: str) -> None:
        assert self._request is not None
        metrics = self._context.metrics
        model = self._request.adapter or self._starts.model
        metrics.early_starts.labels(metrics.model_label(model), outcome).inc()
