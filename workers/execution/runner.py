"""The attempts that run on one worker: which jobs it claims, and which it stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from enum import StrEnum
from typing import NamedTuple, TypeVar

from shared.domain.job import Job, JobStatus, Usage
from shared.domain.priorities import Hint, is_batch, to_front
from shared.domain.request import GenerateRequest
from shared.postgres.claim_store import Claim
from shared.runtime.aio import cancel_and_wait
from shared.runtime.outages import is_outage
from workers.engines.base import Engine
from workers.engines.gate import Gate, Passage
from workers.execution.attempts.attempt import JobAttempt
from workers.execution.attempts.context import AttemptContext, InterruptReason
from workers.execution.attempts.early_start import EarlyStart, EarlyStarts
from workers.execution.attempts.retry import RETRY_S
from workers.execution.engine_deaths import EngineDeaths
from workers.execution.isolation import Isolation
from workers.execution.slots import SlotPool

logger = logging.getLogger(__name__)

T = TypeVar("T")
# How long running jobs have to end by themselves before they are set aside for a suspect, and how long a suspect of a
# batch waits until no urgent job runs.
PATIENCE_S = 1.0
BATCH_PATIENCE_S = 30.0
# One of this many slots at most is taken by suspects that wait, so that others can run between their turns. Messages of
# further suspects are sent again after `LATER_S` seconds.
SUSPECTS_SHARE = 2
LATER_S = 5.0
# A suspect that has no token by then continues beside others. It remains the first to blame for a death.
ALONE_S = 60.0


class _Free:
    """The passage of engines without a gate."""

    def claimed(self, request: GenerateRequest) -> None:
        pass

    def settle(self, usage: Usage, resumed_after: int) -> None:
        pass

    def close(self) -> None:
        pass


FREE = _Free()


class PauseReason(StrEnum):
    """Why a runner accepts no messages."""

    # The engine is being started again, or fills its prompt cache.
    ENGINE = "engine"
    SHUTDOWN = "shutdown"
    # An operator has paused the model's queue, or drains this worker. The messages stay on the queue.
    QUEUE_PAUSED = "queue_paused"
    DRAIN = "drain"


_BY_OPERATOR = (PauseReason.QUEUE_PAUSED, PauseReason.DRAIN)


class LastClaim(NamedTuple):
    """The job claimed last, and when its message arrived, on the monotonic clock."""

    job_id: str
    arrived_at: float


class Runner:
    """Claims and runs jobs for messages; stops, preempts and requeues running jobs. Lives on one event loop."""

    def __init__(
        self,
        context: AttemptContext,
        slot_pool: SlotPool,
        on_room: Callable[[], None] = lambda: None,
        early_starts: EarlyStarts | None = None,
    ) -> None:
        """`on_room` is called when a gate has held back messages and further ones should be fetched again. Without
        `early_starts`, no job is passed to the engine before it is claimed."""
        self.slot_pool = slot_pool
        self._on_room = on_room
        # By priority.
        self.last_claimed: dict[int, LastClaim] = {}
        # When the last message arrived, on the monotonic clock.
        self.last_message = time.monotonic()
        self._context = context
        self._early_starts = early_starts
        self._attempts: dict[str, JobAttempt] = {}
        self._deaths = EngineDeaths(self._attempts.values, context.max_attempts)
        self._pauses: set[PauseReason] = set()
        self._messages = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._grace_over = asyncio.Event()
        # Jobs that were set aside can resume at no cost only if they yield to others at all.
        self._isolates = slot_pool.yields
        self._isolation = Isolation()
        self._waiting_suspects = 0
        # The jobs whose messages wait here: until others may enter the engine, or for their own turn as suspects. A
        # message of such a job is a duplicate, and its message is not lost.
        self.waiting: set[str] = set()
        # Jobs whose claims have not been answered, with the number of messages for each.
        self._claiming: Counter[str] = Counter()
        self.use(context)

    def use(self, context: AttemptContext) -> None:
        """Run jobs in this context from now on."""
        earlier, gate = self._context.engine.gate, context.engine.gate
        self._context = context
        if gate is not None:
            gate.on_room = self._on_room
        if earlier is not None and earlier is not gate:
            earlier.stop()
            self._on_room()

    @property
    def gate(self) -> Gate | None:
        """The gate of the engine for new jobs."""
        return self._context.engine.gate

    @property
    def holding(self) -> bool:
        """Whether no further messages should be fetched, although slots are free. May be read from any thread."""
        if self._paused:
            return not self._pauses.isdisjoint(_BY_OPERATOR)
        gate = self.gate
        return gate is not None and gate.holding

    def uses(self, engine: Engine) -> bool:
        """Whether a running job was started on this engine."""
        return any(attempt.engine is engine for attempt in self._attempts.values())

    @property
    def context(self) -> AttemptContext:
        """What jobs that start now are run with."""
        return self._context

    @property
    def longest_hold_s(self) -> float:
        """For how long a message that a worker has fetched usually waits for the upstream at most, in seconds."""
        gate = self.gate
        return 0.0 if gate is None else gate.longest_hold_s

    @property
    def running(self) -> int:
        return len(self._attempts)

    @property
    def idle(self) -> bool:
        """Whether no message is handled: no job runs, none is being claimed, and none waits to be."""
        return not self._messages

    @property
    def waiting_structures(self) -> int:
        """The number of running jobs whose structured outputs wait to be compiled."""
        compilations = self._context.compilations
        return 0 if compilations is None else compilations.waiting

    @property
    def accepting(self) -> bool:
        """Whether messages lead to claims; they are dropped otherwise."""
        return not self._paused

    async def run(self, job_id: str, priority: int = 0) -> JobStatus | None:
        """Run a job, for a message of this priority.

        Returns its final status; None if it was not claimed, lost its claim or was requeued.
        """
        self.last_message = arrived_at = time.monotonic()
        if self._paused or job_id in self.waiting:
            return None
        with self._counted():
            return await self._run(job_id, priority, arrived_at)

    async def _run(self, job_id: str, priority: int, arrived_at: float) -> JobStatus | None:
        async with contextlib.AsyncExitStack() as stack:
            with self._waiting(job_id):
                if not await self._isolation.open():
                    return None
                passage = await self._enter(job_id, priority)
                if passage is None:
                    return None
                stack.callback(passage.close)
                early = self._start_early(job_id, priority, passage)
                if early is not None:
                    stack.push_async_callback(self._deaths.discard, early)
                job = await self._claim(job_id, arrived_at)
                if job is None and early is not None:
                    await self._deaths.discard(early)
                suspect = await self._queued_suspect(job_id) if job is None and self._isolates else None
            if job is not None:
                if early is not None and not await early.adopt(job, self._context):
                    early = None
                if early is None:
                    passage.claimed(job.request)
                with self._registered(self._attempt(job, early=early)) as attempt:
                    self._preempt_batch_jobs()
                    status = await attempt.run()
                    passage.settle(attempt.usage, attempt.resumed_after)
                    return status
            if suspect is not None:
                return await self._run_alone(suspect, arrived_at)
            return None

    def stop(self, job_id: str, reason: InterruptReason, attempt: int | None = None) -> None:
        """Stop a job, or that attempt of it, if it runs here."""
        running = self._attempts.get(job_id)
        if running is not None and attempt in (None, running.job.attempt):
            running.stop(reason)

    @property
    def _paused(self) -> bool:
        return bool(self._pauses)

    def pause(self, reason: PauseReason = PauseReason.ENGINE) -> None:
        """Accept no messages; running jobs continue."""
        self._pauses.add(reason)
        self._isolation.stop()
        if self.gate is not None:
            self.gate.stop()

    def resume(self, reason: PauseReason = PauseReason.ENGINE) -> None:
        """Accept messages again, unless there is another reason to be paused."""
        self._pauses.discard(reason)
        if reason is PauseReason.ENGINE:
            self._deaths.restarted()
        if self._paused:
            return
        self._isolation.resume()
        if self.gate is not None:
            self.gate.resume()
        if reason in _BY_OPERATOR:
            self._on_room()

    async def until_idle(self) -> None:
        """Wait until no message is handled."""
        await self._idle.wait()

    async def drain(self, grace_s: float) -> None:
        """Accept no messages, let running jobs finish for `grace_s` seconds, then requeue the rest."""
        self.pause(PauseReason.SHUTDOWN)
        waits = [asyncio.create_task(event.wait()) for event in (self._idle, self._grace_over)]
        try:
            await asyncio.wait(waits, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(*waits)
        await self.requeue_all()

    def end_grace(self) -> None:
        """End the grace period of a drain now."""
        self._grace_over.set()

    async def requeue_all(self) -> None:
        """Return all running jobs to the queue; returns when that is done."""
        for attempt in list(self._attempts.values()):
            attempt.stop(InterruptReason.REQUEUED)
        await self._idle.wait()

    def not_running(self, claims: list[Claim]) -> list[Claim]:
        """Those of this worker's claims whose attempts do not run here, nor start once their claim is answered."""
        running = {(job_id, attempt.job.attempt) for job_id, attempt in self._attempts.items()}
        return [
            claim
            for claim in claims
            if (claim.job_id, claim.attempt) not in running and claim.job_id not in self._claiming
        ]

    def claimed_before(self, moment: float) -> list[tuple[str, int]]:
        """Running jobs, with their attempts' numbers, that were claimed before a moment of the monotonic clock.

        Without those that are giving up their claims.
        """
        return [
            (job_id, attempt.job.attempt)
            for job_id, attempt in self._attempts.items()
            if attempt.claimed_at < moment and not attempt.handing_over and not attempt.finishing
        ]

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a message as being handled: the runner is idle when there is none."""
        self._messages += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._messages -= 1
            if not self._messages:
                self._idle.set()

    @contextlib.contextmanager
    def _waiting(self, job_id: str) -> Iterator[None]:
        """Count a job's message as waiting here."""
        self.waiting.add(job_id)
        try:
            yield
        finally:
            self.waiting.discard(job_id)

    async def _enter(self, job_id: str, priority: int) -> Passage | None:
        """Wait for the engine's gate. None: the message was sent back to the queue."""
        gate = self.gate
        if gate is None:
            return FREE
        passage = await gate.enter(priority)
        if passage is None:
            self._context.send(Hint(job_id, gate.model, priority, front=True))
        return passage

    async def _run_alone(self, suspect: Hint, arrived_at: float) -> JobStatus | None:
        """Run a suspect: alone until it has a token, at most `ALONE_S`, then beside others."""
        if self._waiting_suspects >= max(1, self.slot_pool.slots // SUSPECTS_SHARE):
            self._send_later(suspect)
            return None
        isolation, turn = self._isolation, object()
        try:
            job = await self._claim_alone(suspect, turn, arrived_at)
            if job is None:
                return None
            logger.warning("job=%s runs alone: a worker or engine died while it had no token", job.id)
            with self._registered(self._attempt(job, on_cleared=lambda: isolation.end_turn(turn))) as attempt:
                limit = asyncio.get_running_loop().call_later(ALONE_S, isolation.end_turn, turn)
                try:
                    return await attempt.run()
                finally:
                    limit.cancel()
        finally:
            isolation.end_turn(turn)

    async def _claim_alone(self, suspect: Hint, turn: object, arrived_at: float) -> Job | None:
        """Claim a suspect when its turn has come and no other job runs. Returns None if it cannot be claimed."""
        isolation, job_id = self._isolation, suspect.job_id
        self._waiting_suspects += 1
        try:
            with self._waiting(job_id):
                if is_batch(suspect.priority):
                    await isolation.until(lambda: not self._urgent_running, BATCH_PATIENCE_S)
                if not await isolation.take_turn(turn, self._is_empty):
                    return None
                if await self._queued_suspect(job_id) is None:  # another worker may have claimed it meanwhile
                    return None
                if not await self._empty():
                    return None
                return await self._claim(job_id, arrived_at, suspects=True)
        finally:
            self._waiting_suspects -= 1

    def _send_later(self, suspect: Hint) -> None:
        """Send a suspect's message again after a while. Until then, it counts as waiting here."""
        self.waiting.add(suspect.job_id)

        def send() -> None:
            self.waiting.discard(suspect.job_id)
            if not self._paused:
                self._context.send(to_front(suspect))

        asyncio.get_running_loop().call_later(LATER_S, send)

    async def _queued_suspect(self, job_id: str) -> Hint | None:
        return await self._retry(lambda: self._context.store.queued_suspect(job_id), job_id)

    async def _empty(self) -> bool:
        """Wait until no job runs; set aside those that do not end soon. Returns False if paused meanwhile."""
        patience_s = PATIENCE_S if self._isolation.turns == 1 else 0
        if not await self._isolation.until(self._is_empty, patience_s) and not self._paused:
            for attempt in list(self._attempts.values()):
                logger.info("job=%s set aside for a suspect", attempt.job.id)
                attempt.stop(InterruptReason.PREEMPTED)
        return await self._isolation.until(self._is_empty)

    def _is_empty(self) -> bool:
        return not self._attempts and not self._claiming

    @property
    def _urgent_running(self) -> bool:
        return any(not is_batch(attempt.job.priority) for attempt in self._attempts.values())

    def _start_early(self, job_id: str, priority: int, passage: Passage) -> EarlyStart | None:
        """Start a job before it is claimed, if there is a free slot for it that no suspect waits for."""
        if self._early_starts is None or not self._context.starts_early or is_batch(priority):
            return None
        if self._isolation.closed or self._waiting_suspects or self._context.engine.dead:
            return None
        if len(self._attempts) + self._claiming.total() >= self.slot_pool.slots:
            return None
        early = self._early_starts.begin(job_id, self._context, passage)
        self._deaths.started_early(early)
        return early

    def _attempt(
        self, job: Job, on_cleared: Callable[[], None] = lambda: None, early: EarlyStart | None = None
    ) -> JobAttempt:
        if early is not None:
            self._deaths.adopted(early)
        return JobAttempt(job, self._context, self._deaths.judge, on_cleared, self._handed_over, early)

    def _handed_over(self, attempt: JobAttempt, earlier_id: str) -> None:
        """An attempt runs another job now."""
        if self._attempts.get(earlier_id) is attempt:
            del self._attempts[earlier_id]
        self._attempts[attempt.job.id] = attempt

    async def _claim(self, job_id: str, arrived_at: float, *, suspects: bool = False) -> Job | None:
        """Claim a job. Returns None if it is not queued any more, or if the runner is paused.

        Without `suspects`, a suspect is claimed only if this engine does not isolate them.
        """
        self._claiming[job_id] += 1
        try:
            claim = self._context.store.claim
            job = await self._retry(lambda: claim(job_id, suspects=suspects or not self._isolates), job_id)
        finally:
            self._claiming -= Counter([job_id])
            self._isolation.changed()
        if job is not None:
            if self._early_starts is not None:
                self._early_starts.learn(job)
            self.last_claimed[job.priority] = LastClaim(job.id, arrived_at)
        return job

    async def _retry(self, call: Callable[[], Awaitable[T | None]], job_id: str) -> T | None:
        """Await `call` until the database is available. Returns None if the runner is paused.

        A message waits here while the database is unavailable: otherwise a worker would empty its queue.
        """
        delay = RETRY_S[0]
        while not self._paused:
            try:
                return await call()
            except Exception as error:
                if not is_outage(error):
                    raise
                logger.warning("job=%s claim failed, retrying: %s", job_id, error)
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY_S[1])
        return None

    @contextlib.contextmanager
    def _registered(self, attempt: JobAttempt) -> Iterator[JobAttempt]:
        """Keep a running attempt where `stop` finds it."""
        job_id = attempt.job.id
        # An earlier attempt may still run here: its lease expired before this worker noticed.
        self.stop(job_id, InterruptReason.CLAIM_LOST)
        self._attempts[job_id] = attempt
        if self._paused:
            attempt.stop(InterruptReason.REQUEUED)  # paused during the claim
        try:
            yield attempt
        finally:
            job_id = attempt.job.id  # another one, if it was handed over
            if self._attempts.get(job_id) is attempt:
                del self._attempts[job_id]
            self._isolation.changed()

    def _preempt_batch_jobs(self) -> None:
        """Requeue batch jobs if more jobs run than the engine has slots for.

        The new request need not wait for the abort: the engine itself holds it back, for one step at most. Jobs whose
        output would have to be regenerated are preempted last; of the others, the most recently claimed go first.
        """
        active = [attempt for attempt in self._attempts.values() if attempt.active]
        excess = len(active) - self.slot_pool.slots
        if excess <= 0 or not self.slot_pool.yields:
            return
        batch = [attempt for attempt in active if is_batch(attempt.job.priority)]
        resume_mode = self._context.engine.resume_mode
        batch.sort(key=lambda attempt: (-resume_mode(attempt.job.request), -attempt.claimed_at))
        for attempt in batch[:excess]:
            logger.info("job=%s preempted by an urgent job", attempt.job.id)
            attempt.stop(InterruptReason.PREEMPTED)
