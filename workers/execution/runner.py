"""Runs jobs on one engine: claim, generate, publish, finish."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import TypeVar

from shared.domain.errors import ErrorCode, InvalidRequest
from shared.domain.events import EventType, seq_before
from shared.domain.job import Failure, Job, JobStatus, Usage
from shared.domain.priorities import Hint, is_batch, to_front
from shared.domain.result import CANCELLED, LATE, build_result, exhausted
from shared.domain.transcript import Transcript, tokens_by_attempt
from shared.postgres.claim_store import Claim, ClaimStore
from shared.redis.event_log import EventLog, Fenced
from shared.runtime.outages import is_outage
from shared.telemetry.metrics import job_ended
from shared.telemetry.tracing import NO_TRACES, Traces
from workers.engines.base import Engine, EngineDead, EngineError, PromptInfo, Restarted
from workers.execution import job_metrics as counts
from workers.execution.attempt import RunningAttempt, StopReason
from workers.execution.log_writer import LogBuffer, LogWriter
from workers.execution.slots import SlotPool

logger = logging.getLogger(__name__)

T = TypeVar("T")
RETRY_S = (0.1, 2.0)


class Runner:
    """The jobs of one worker process, on its event loop."""

    def __init__(
        self,
        *,
        worker: str,
        engine: Engine,
        slot_pool: SlotPool,
        store: ClaimStore,
        logs: EventLog,
        log_writer: LogWriter,
        log_ttl_s: int,
        max_attempts: int,
        send: Callable[[Hint], None],
        on_engine_death: Callable[[], None],
        traces: Traces = NO_TRACES,
    ) -> None:
        """`on_engine_death` is called from the loop, once for each job that finds the engine dead."""
        self.worker = worker
        self.slot_pool = slot_pool
        self._engine = engine
        self._store = store
        self._logs = logs
        self._log_writer = log_writer
        self._log_ttl_s = log_ttl_s
        self._max_attempts = max_attempts
        self._send = send
        self._on_engine_death = on_engine_death
        self._traces = traces
        self._runs: dict[str, RunningAttempt] = {}
        self._closed = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._hurry = asyncio.Event()
        self.in_hand = 0
        # By priority: which job was claimed last.
        self.last_claimed: dict[int, str] = {}
        self.last_message = time.monotonic()

    @property
    def running(self) -> int:
        return len(self._runs)

    @property
    def taking(self) -> bool:
        """Whether it takes jobs now."""
        return not self._closed

    async def run(self, job_id: str) -> JobStatus | None:
        """Run a job to its end. None: it was not ours to run, or it was handed back."""
        self.last_message = time.monotonic()
        if self._closed:
            return None
        self.in_hand += 1
        self._empty.clear()
        try:
            job = await self._claim(job_id)
            if job is None:
                return None
            self.last_claimed[job.priority] = job.id
            with self._tracked(job) as run:
                counts.claimed(job)
                run.trace = self._traces.claimed(job)
                if self._closed:
                    self.stop(job.id, StopReason.HAND_BACK)  # the drain began while it was being claimed
                self._set_aside()
                if not await self._open_log(run):
                    return None
                await self._generate(run)
                return await self._finish(run)
        finally:
            self.in_hand -= 1
            if not self.in_hand:
                self._empty.set()

    def stop(self, job_id: str, why: StopReason, attempt: int | None = None) -> None:
        """Stop a running job: the engine aborts it, and what it made so far is kept."""
        run = self._runs.get(job_id)
        if run is None or run.stop is not None or (attempt is not None and run.job.attempt != attempt):
            return
        run.stop = why
        if run.generating is not None:
            run.generating.cancel()

    def _set_aside(self) -> None:
        """Where more jobs run than the engine holds, hand batch jobs back, whose next token any worker can make.

        The engine need not be waited for: what is new waits inside for what is aborted, for a step at most. Jobs
        that cannot go on at their next token are taken last; of the others that which has made least.
        """
        running = [
            run
            for run in self._runs.values()
            if run.stop is None and not (run.generating is not None and run.generating.done())
        ]
        over = len(running) - self.slot_pool.slots
        if over <= 0 or not self.slot_pool.yields:
            return
        batch = [run for run in running if is_batch(run.job.priority)]
        batch.sort(key=lambda run: (-self._engine.resume_mode(run.job.request), -run.claimed))
        for run in batch[:over]:
            logger.info("job=%s makes room for a more urgent one", run.job.id)
            self.stop(run.job.id, StopReason.SET_ASIDE)

    def close(self) -> None:
        """Take nothing more."""
        self._closed = True

    def open(self) -> None:
        """Take jobs again."""
        self._closed = False

    def hurry(self) -> None:
        """End the grace of a drain now."""
        self._hurry.set()

    async def drain(self, grace_s: float) -> None:
        """Take nothing more; let running jobs finish for so long, then hand the rest back."""
        self.close()
        waits = [asyncio.create_task(event.wait()) for event in (self._empty, self._hurry)]
        await asyncio.wait(waits, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await self.hand_back()

    async def hand_back(self) -> None:
        """Put all running jobs back into the queue; returns when that is done."""
        for job_id in list(self._runs):
            self.stop(job_id, StopReason.HAND_BACK)
        await self._empty.wait()

    def unowned(self, held: list[Claim]) -> list[Claim]:
        """What the database says that this worker holds and that does not run here."""
        return [
            item
            for item in held
            if item.job_id not in self._runs or self._runs[item.job_id].job.attempt != item.attempt
        ]

    def runs_before(self, moment: float) -> list[tuple[str, int]]:
        """Jobs (and attempts) claimed before a moment of the monotonic clock."""
        return [(job_id, run.job.attempt) for job_id, run in self._runs.items() if run.claimed < moment]

    @contextlib.contextmanager
    def _tracked(self, job: Job) -> Iterator[RunningAttempt]:
        choices = job.request.sampling.n
        run = RunningAttempt(
            job, LogBuffer(job.id, job.attempt, job.model, counted=job.request.token_counts), Transcript(choices)
        )
        self.stop(job.id, StopReason.LOST)  # an earlier attempt still here: its lease ran out, and nobody has told it
        self._runs[job.id] = run
        try:
            yield run
        finally:
            if self._runs.get(job.id) is run:
                del self._runs[job.id]

    async def _claim(self, job_id: str) -> Job | None:
        """Claim a job. While the database is away the message waits here: else a worker would use up its queue."""
        delay = RETRY_S[0]
        while not self._closed:
            try:
                return await self._store.claim(job_id)
            except Exception as error:
                if not is_outage(error):
                    raise
                logger.warning("job=%s cannot be claimed, trying again: %s", job_id, error)
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY_S[1])
        return None

    async def _open_log(self, run: RunningAttempt) -> bool:
        """Take the log over from earlier attempts, and go on after their last token where that is exact."""
        job, log = run.job, run.log
        if job.attempt > 1:
            try:
                events = await self._patiently(lambda: self._logs.take_over(job.id, job.attempt), "log")
            except Fenced:
                return False
            log.adopt(events, events[-1].seq if events else seq_before(job.attempt))
            run.transcript = Transcript.of(events, job.request.sampling.n)
            run.made_before = run.transcript.tokens
            run.lost_tokens = tokens_by_attempt(events)
            made_text = bool(run.transcript.deltas) or not events
            if made_text and not (events and self._engine.resume_mode(job.request)):
                self._restart(run)
        log.event(EventType.STARTED, {"attempt": job.attempt, "worker": self.worker})
        logger.info(
            "job=%s model=%s attempt=%d worker=%s request=%s started, after %d tokens",
            job.id, job.model, job.attempt, self.worker, job.request_context.request_id, run.made_before,
        )  # fmt: skip
        return True

    def _restart(self, run: RunningAttempt) -> None:
        """Tell readers to discard what they have."""
        run.transcript.clear()
        run.made_before = 0
        run.log.discard()
        run.log.event(EventType.RESTARTED, {"attempt": run.job.attempt})

    async def _generate(self, run: RunningAttempt) -> None:
        """Generate in a task of its own, so that a stop cancels this and nothing else."""
        if run.stop is None:
            run.generating = asyncio.create_task(self._publish_outputs(run), name=f"generate-{run.job.id}")
        self._log_writer.touch(run.log)  # that it started is told once the engine was asked, which takes longer
        if run.generating is None:
            return
        deadline = None
        if run.job.finish_before is not None:
            left_s = (run.job.finish_before - run.now()).total_seconds()
            deadline = asyncio.get_running_loop().call_later(
                max(0.0, left_s), self.stop, run.job.id, StopReason.DEADLINE, run.job.attempt
            )
        await asyncio.wait([run.generating])
        if deadline is not None:
            deadline.cancel()

    async def _publish_outputs(self, run: RunningAttempt) -> None:
        job = run.job
        prior = list(run.transcript.deltas)
        if prior and all(choice.finish_reason for choice in run.transcript.choices()):
            return  # the attempt before this one died between its last token and its row
        run.given = time.monotonic()
        counts.given(job, run.given - run.claimed)
        run.trace.generates(run.now(), run.made_before)
        outputs = self._engine.generate(f"{job.id}-{job.attempt}", job.request, prior)
        async with aclosing(outputs):
            async for item in outputs:
                if isinstance(item, PromptInfo):
                    run.prompt = item
                    continue
                if isinstance(item, Usage):
                    run.told = item
                    continue
                if isinstance(item, Restarted):
                    self._restart(run)
                    continue
                if run.first_token_at is None:
                    run.first_token_at = run.now()
                    item.prompt_tokens = run.prompt.prompt_tokens or None
                    before = any(run.lost_tokens.values())
                    counts.first_token(job, time.monotonic() - run.given, None if before else run.first_token_at)
                    run.trace.first_token(run.first_token_at, run.prompt.prompt_tokens, run.prompt.cached_tokens)
                run.transcript.add(item)
                run.log.delta(item)
                self._log_writer.touch(run.log)

    async def _finish(self, run: RunningAttempt) -> JobStatus | None:
        """Write how the attempt ended: first the row, then the event that tells readers."""
        assert run.generating is None or run.generating.done()
        error = None
        if run.generating is not None and not run.generating.cancelled():
            error = run.generating.exception()
        if isinstance(error, EngineDead):
            logger.error("job=%s the engine died under it", run.job.id)
            self._on_engine_death()
            if run.job.deaths + 1 >= self._max_attempts:
                return await self._end(run, JobStatus.FAILED, exhausted(self._max_attempts))
            return await self._hand_back(run, "engine_lost", died=True)
        if run.stop is StopReason.LOST:
            return None
        if (
            run.stop in (StopReason.HAND_BACK, StopReason.SET_ASIDE)
            and error is None
            and (run.generating is None or run.generating.cancelled())
        ):
            return await self._hand_back(run, run.stop.value)

        status, failure = self._outcome(run, error)
        return await self._end(run, status, failure)

    def _outcome(self, run: RunningAttempt, error: BaseException | None) -> tuple[JobStatus, Failure | None]:
        if isinstance(error, InvalidRequest):
            return JobStatus.FAILED, Failure(ErrorCode.INVALID_REQUEST, error.message)
        if isinstance(error, EngineError):
            return JobStatus.FAILED, Failure(error.code, error.message)
        if error is not None:
            logger.error("job=%s failed unexpectedly", run.job.id, exc_info=error)
            return JobStatus.FAILED, Failure(ErrorCode.ENGINE_ERROR, f"{type(error).__name__}: {error}")
        choices = run.transcript.choices()
        if not all(choice.finish_reason for choice in choices):
            if run.stop is None:
                return JobStatus.FAILED, Failure(ErrorCode.ENGINE_ERROR, "The engine ended the request too early.")
            return JobStatus.CANCELLED, LATE if run.stop is StopReason.DEADLINE else CANCELLED
        if any(choice.finish_reason == "length" for choice in choices):
            return JobStatus.INCOMPLETE, None
        return JobStatus.COMPLETED, None

    async def _end(self, run: RunningAttempt, status: JobStatus, failure: Failure | None) -> JobStatus | None:
        job, usage = run.job, run.usage()
        run.log.seal()
        ending, last = build_result(
            job,
            run.log.events,
            run.log.seq + 1,
            status=status,
            output=run.transcript.choices(),
            usage=usage,
            failure=failure,
            first_token_at=run.first_token_at,
            finished_at=run.now(),
            outcome=status.value,
            tokens={**run.lost_tokens, job.attempt: run.tokens},
        )
        finish = self._patiently(lambda: self._store.finish(job.id, job.attempt, ending), "result")
        if not await asyncio.shield(asyncio.ensure_future(finish)):
            logger.warning("job=%s attempt=%d is not ours any more; result dropped", job.id, job.attempt)
            counts.result_refused(job)
            return None
        job_ended(job, ending)
        counts.attempt_ended(job, status.value)
        run.trace.ended(ending.finished_at, status.value, usage.prompt_tokens, run.tokens)
        run.log.close(last, self._log_ttl_s)
        self._log_writer.touch(run.log)
        logger.info(
            "job=%s model=%s attempt=%d worker=%s request=%s %s prompt=%d output=%d ms=%d",
            job.id, job.model, job.attempt, self.worker, job.request_context.request_id, status.value,
            usage.prompt_tokens, usage.completion_tokens,
            round((ending.finished_at - job.created_at).total_seconds() * 1000),
        )  # fmt: skip
        return status

    async def _hand_back(self, run: RunningAttempt, outcome: str, *, died: bool = False) -> JobStatus | None:
        """Back into the queue, with its text so far; a job that is being cancelled ends instead."""
        job = run.job
        run.log.seal()
        self._log_writer.touch(run.log)
        given = await self._patiently(
            lambda: self._store.requeue(
                job.id,
                job.attempt,
                tokens=run.tokens,
                outcome=outcome,
                died=died,
                first_token_at=run.first_token_at,
            ),
            "hand-back",
        )
        if given:
            counts.attempt_ended(job, outcome)
            run.trace.ended(run.now(), outcome, run.prompt.prompt_tokens, run.tokens)
            logger.info(
                "job=%s model=%s attempt=%d worker=%s request=%s handed back after %d tokens (%s)",
                job.id, job.model, job.attempt, self.worker, job.request_context.request_id, run.tokens, outcome,
            )  # fmt: skip
            self._send(to_front(Hint(job.id, job.model, job.priority)))
            return None
        return await self._end(run, JobStatus.CANCELLED, CANCELLED)

    async def _patiently(self, call: Callable[[], Awaitable[T]], what: str) -> T:
        """Try until it works: while the database or Redis is away, the job's result waits here."""
        delay = RETRY_S[0]
        while True:
            try:
                return await call()
            except Exception as error:
                if not is_outage(error):
                    raise
                logger.warning("cannot write or read a job's %s, trying again: %s", what, error)
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY_S[1])
