"""Runs a job's request on the engine and publishes what it emits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from shared.domain.events import Delta, UpstreamState
from shared.domain.job import Usage
from shared.domain.suspects import kills_late
from workers.engines.base import (
    NO_PRIOR,
    CannotContinue,
    EngineDead,
    EngineItem,
    Prior,
    PromptInfo,
    Restarted,
    RunEnded,
)
from workers.execution.attempts.abandoned_requests import abandon
from workers.execution.attempts.log import restart, shown
from workers.execution.attempts.retry import retry
from workers.execution.attempts.state import AttemptState


class OutputPublisher:
    """Generates the answer of an attempt and writes it to the job's log."""

    def __init__(self, state: AttemptState, on_cleared: Callable[[], None]) -> None:
        """`on_cleared` is called once the job is no suspect any more."""
        # When the engine received the request, on the monotonic clock; 0 before.
        self.submitted_at = 0.0
        self._state = state
        self._on_cleared = on_cleared
        self._clearing: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Generate the rest of the answer. A stop of the attempt cancels this.

        Raises:
            CannotContinue: the engine cannot continue the output so far, which a reader may have seen.
            EngineError: the engine failed.
            InvalidRequest: the engine refused the request.
        """
        state = self._state
        job = state.job
        if state.complete:
            return  # an earlier attempt ended after its last token, before it wrote the row
        if state.stuck:
            raise CannotContinue
        if state.context.compilations is None:
            await self._submit(lambda: None)
        else:
            async with state.context.compilations.turn(job) as compiled:
                await self._submit(compiled)

    async def wait_for_writes(self) -> None:
        """Wait for the write to the row that the first token has caused, if there is one."""
        if self._clearing is not None:
            await self._clearing

    async def _submit(self, compiled: Callable[[], None]) -> None:
        """Generate the rest of the answer. `compiled` is called at the engine's first output."""
        state = self._state
        early = state.early
        if early is not None:
            self.submitted_at = early.started_at
        if state.context.engine.dead and (early is None or early.in_engine):
            raise EngineDead
        if early is None:
            self.submitted_at = time.monotonic()
        state.metrics.submitted(max(0.0, self.submitted_at - state.claimed_at))
        state.trace.generation_started(state.database_now(), state.prior_tokens)
        try:
            await self._relay(self._generate(state.prior) if early is None else early.outputs(), compiled)
        except CannotContinue:
            if await shown(state):
                raise
            await restart(state)
            await self._relay(self._generate(NO_PRIOR), compiled)

    def _generate(self, prior: Prior) -> AsyncGenerator[EngineItem, None]:
        job = self._state.job
        return self._state.context.engine.generate(f"{job.id}-{job.attempt}", job.request, prior)

    async def _relay(self, outputs: AsyncGenerator[EngineItem, None], compiled: Callable[[], None]) -> None:
        """Publish what the engine emits."""
        state = self._state
        async with aclosing(outputs):
            async for item in outputs:
                compiled()
                match item:
                    case PromptInfo():
                        state.prompt = item
                    case Usage():
                        state.reported_usage = item
                    case Restarted():
                        await restart(state)
                    case RunEnded():
                        state.run_ended = True
                    case UpstreamState():
                        state.resumes_request = False
                        earlier = state.running_upstream
                        state.transcript.upstream, state.run_ended = item, False
                        state.log.upstream(item)
                        state.context.log_writer.schedule(state.log)
                        if earlier is not None and earlier.id != item.id:  # the engine could not resume it
                            await abandon(state, earlier)
                    case _:
                        self._publish(item)

    def _publish(self, delta: Delta) -> None:
        state = self._state
        if state.first_token_at is None:
            state.first_token_at = state.database_now()
            delta.prompt_tokens = state.prompt.prompt_tokens or None
            is_first_of_log = not state.transcript.generated
            state.metrics.first_token(
                time.monotonic() - self.submitted_at, state.first_token_at if is_first_of_log else None
            )
            state.trace.first_token(state.first_token_at, state.prompt.prompt_tokens, state.prompt.cached_tokens)
        if delta.tokens and not state.generated:
            state.generated = True
            # The first token of a job that may kill late does not clear it.
            cleared = state.suspect and not kills_late(state.job.exposures, state.context.max_attempts)
            if cleared or state.job.deferred_since is not None:
                self._clearing = asyncio.create_task(self._record_token(cleared), name=f"token-{state.job.id}")
        if delta.opaque:
            delta.opaque = state.transcript.placed(delta)
        state.transcript.add(delta)
        state.log.delta(delta)
        state.context.log_writer.schedule(state.log)

    async def _record_token(self, cleared: bool) -> None:
        """Record that the job is not deferred any more and, if `cleared`, no suspect."""
        job, store = self._state.job, self._state.context.store
        await retry(lambda: store.record_token(job.id, job.attempt, cleared=cleared), "row")
        if cleared:
            self._state.suspect = False
            self._on_cleared()
