"""An engine that generates each token when the test requests it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from shared.domain.events import Delta, UpstreamState
from shared.domain.request import GenerateRequest
from workers.engines.base import NO_PRIOR, Engine, EngineDead, EngineStats, Prior, PromptInfo, Restarted, RunEnded
from workers.engines.gate import Gate
from workers.engines.resume import Resume

DEADLINE_S = 20.0
# Token ids identify the attempt that generated them: `attempt * IDS_PER_ATTEMPT + position`.
IDS_PER_ATTEMPT = 10_000


def token_text(position: int) -> str:
    """The text of the token at a position. Every fourth token has none; the next one has both texts."""
    if position % 4 == 3:
        return ""
    return f"{position - 1} {position} " if position % 4 == 0 and position else f"{position} "


def text_of_tokens(count: int) -> str:
    """The text of the first `count` tokens, independent of the attempt that generated them."""
    return "".join(token_text(position) for position in range(count))


class Call:
    """One request in the engine."""

    def __init__(
        self, job_id: str, attempt: int, request: GenerateRequest, prior: Prior, prompt: PromptInfo | None
    ) -> None:
        self.job_id = job_id
        self.attempt = attempt
        self.request = request
        self.upstream = prior.upstream
        self._prompt = prompt
        self.prior = "".join(delta.text for delta in prior.deltas if delta.index == 0)
        self.generated = sum(len(delta.token_ids) for delta in prior.deltas if delta.index == 0)
        self.ended = asyncio.Event()
        self.task = asyncio.current_task()
        self._choices = request.sampling.n
        self._steps: asyncio.Queue[str | Exception | Restarted | RunEnded | UpstreamState | None] = asyncio.Queue()

    async def tokens(self, count: int) -> None:
        """Generate `count` tokens of each choice; returns when the runner has received them or has stopped."""
        for _ in range(count):
            self._steps.put_nowait(None)
        received = asyncio.ensure_future(self._steps.join())
        ended = asyncio.ensure_future(self.ended.wait())
        done, waiting = await asyncio.wait({received, ended}, timeout=DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        assert done, "the runner does not receive the tokens"

    def finish(self, reason: str) -> None:
        """Generate the last token of each choice."""
        self._steps.put_nowait(reason)

    def restart(self) -> None:
        """Start the answer again from its first token."""
        self._steps.put_nowait(Restarted())

    def accept(self, state: UpstreamState) -> None:
        """Report that an upstream runs the request."""
        self._steps.put_nowait(state)

    def end_run(self) -> None:
        """Report that the upstream has ended the request."""
        self._steps.put_nowait(RunEnded())

    def fail(self, error: Exception) -> None:
        """Fail the request with this error."""
        self._steps.put_nowait(error)

    async def run(self) -> AsyncGenerator[Delta | PromptInfo | Restarted | RunEnded | UpstreamState, None]:
        if self._prompt is not None:
            yield self._prompt
        reason: str | None = None
        while reason is None:
            step = await self._steps.get()
            if isinstance(step, Exception):
                raise step
            if isinstance(step, (Restarted, RunEnded, UpstreamState)):
                self.generated = 0 if isinstance(step, Restarted) else self.generated
                yield step
                self._steps.task_done()
                continue
            reason, position = step, self.generated
            self.generated += 1
            token_id = self.attempt * IDS_PER_ATTEMPT + position
            for index in range(self._choices):
                yield Delta(index, token_text(position), (token_id,), reason)
            self._steps.task_done()


class SteeredEngine:
    """Resumes requests with one choice exactly; `several_choices` is the resume mode of all others."""

    gate: Gate | None = None

    def __init__(self, slots: int = 64) -> None:
        self.slots = slots
        self.fingerprint = "fp_steered"
        # None: as of an upstream, which reports the usage at the end only.
        self.prompt: PromptInfo | None = PromptInfo(3)
        self.adapter_fingerprints: dict[str, str] = {}
        self.several_choices = Resume.RESTART
        self.cancelled: list[UpstreamState] = []
        self.dead = False
        self.calls: dict[tuple[str, int], Call] = {}
        self._awaited: dict[str, asyncio.Future[Call]] = {}

    async def start(self) -> None:
        self.dead = False

    async def stop(self) -> None:
        pass

    def next_call(self, job_id: str) -> asyncio.Future[Call]:
        """The job's next request, once the engine has received it."""
        return self._awaited.setdefault(job_id, asyncio.get_running_loop().create_future())

    def discard_next_call(self, job_id: str) -> None:
        """Stop waiting for a job's next request."""
        self._awaited.pop(job_id, None)

    def die(self) -> None:
        """Die and fail all requests."""
        self.dead = True
        for call in self.calls.values():
            call.fail(EngineDead("killed by the test"))

    def take_over(self, earlier: Engine) -> None:
        pass

    def resume_mode(self, request: GenerateRequest, prior: Prior = NO_PRIOR) -> Resume:
        return Resume.EXACT if request.sampling.n == 1 else self.several_choices

    async def cancel(self, state: UpstreamState) -> None:
        self.cancelled.append(state)

    def stats(self) -> EngineStats:
        return EngineStats(len(self.calls))

    async def generate(
        self, request_id: str, request: GenerateRequest, prior: Prior = NO_PRIOR
    ) -> AsyncGenerator[Delta | PromptInfo | Restarted | RunEnded | UpstreamState, None]:
        if prior.deltas and not prior.comparable and self.resume_mode(request) is Resume.REGENERATE:
            yield Restarted()
            prior = NO_PRIOR
        job_id, _, attempt = request_id.rpartition("-")
        call = Call(job_id, int(attempt), request, prior, self.prompt)
        self.calls[job_id, call.attempt] = call
        if (awaited := self._awaited.pop(job_id, None)) is not None and not awaited.done():
            awaited.set_result(call)
        try:
            async with aclosing(call.run()) as items:
                async for item in items:
                    yield item
                    call.task = asyncio.current_task()  # an early start leaves the rest to another task
        finally:
            del self.calls[job_id, call.attempt]
            call.ended.set()
