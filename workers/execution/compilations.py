"""Passes structured outputs to the engine at the rate at which it compiles them.

An engine compiles schemas and grammars on a few threads, in order of arrival, and does not drop one whose job was
cancelled. So large ones wait here: cancelled jobs leave the line, and projects take turns. A structure counts as
compiled once its job has output, or after its estimated time (`shared.domain.structure_size`).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from shared.config.models.loader import ModelSpec
from shared.domain.errors import InvalidRequest
from shared.domain.job import Job
from shared.domain.request import GenerateRequest
from shared.domain.structure_size import StructureBounds, structure_steps
from shared.runtime.time_slice import TimeSlice
from shared.telemetry.metrics import Metrics

# Estimated states that an engine compiles in a second.
STATES_PER_S = 1_000_000
# Structures of less than this many seconds pass at once: those of a full engine take less than two seconds together.
PASSES_S = 0.02


def default_threads() -> int:
    """How many structures may be compiled at a time: vLLM's threads without one, which is left for small structures."""
    return max(1, ((os.cpu_count() or 1) + 1) // 2 - 1)


class Compilations:
    """The line of one engine. Lives on one event loop."""

    def __init__(
        self,
        bounds: StructureBounds,
        observe_wait: Callable[[float], None],
        *,
        all_tools: bool = False,
        threads: int | None = None,
    ) -> None:
        """`observe_wait` is called with the seconds that a structure waited; `all_tools` is as in `structure_steps`."""
        self._bounds = bounds
        self._observe_wait = observe_wait
        self._all_tools = all_tools
        self._free = default_threads() if threads is None else threads
        # By project: the structures that wait, the number of those being compiled, and when one last had its turn.
        self._waiting: dict[int, deque[asyncio.Future[None]]] = {}
        self._compiling: Counter[int] = Counter()
        self._served: dict[int, int] = {}
        self._turns = 0

    @property
    def waiting(self) -> int:
        """The number of structures that wait."""
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def turn(self, job: Job) -> AsyncIterator[Callable[[], None]]:
        """Wait until the engine may compile the job's structure. Gives a function to call once that is compiled."""
        needed_s = await self._estimate_s(job.request)
        if needed_s < PASSES_S:
            yield lambda: None
            return
        project = job.owner.project_id
        await self._wait(project)
        finished = False

        def finish() -> None:
            nonlocal finished
            if not finished:
                finished = True
                self._finish(project)

        timer = asyncio.get_running_loop().call_later(needed_s, finish)
        try:
            yield finish
        finally:
            # Otherwise the job was cancelled, and the engine continues to compile its structure.
            if finished:
                timer.cancel()

    async def _estimate_s(self, request: GenerateRequest) -> float:
        slice_ = TimeSlice()
        total = 0.0
        try:
            for states in structure_steps(request, self._bounds, all_tools=self._all_tools, lazy_strings=True):
                total = states
                if slice_.over:
                    await slice_.give_way()
        except InvalidRequest:  # accepted under other bounds
            total = self._bounds.max_states
        return total / STATES_PER_S

    async def _wait(self, project: int) -> None:
        began = time.monotonic()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(project, deque()).append(turn)
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._finish(project)  # had its turn in the same step
            else:
                self._leave(project, turn)
            raise
        self._observe_wait(time.monotonic() - began)

    def _serve(self) -> None:
        """Give free turns to the projects with the fewest structures being compiled, the longest unserved first."""
        while self._free and self._waiting:
            project = min(self._waiting, key=lambda one: (self._compiling[one], self._served.get(one, 0)))
            turn = self._waiting[project][0]
            self._leave(project, turn)
            if not turn.done():
                self._free -= 1
                self._turns += 1
                self._compiling[project] += 1
                self._served[project] = self._turns
                turn.set_result(None)

    def _finish(self, project: int) -> None:
        self._free += 1
        self._compiling[project] -= 1
        if not self._compiling[project]:
            del self._compiling[project]
            if project not in self._waiting:
                self._served.pop(project, None)
        self._serve()

    def _leave(self, project: int, turn: asyncio.Future[None]) -> None:
        line = self._waiting.get(project)
        if line is not None and turn in line:
            line.remove(turn)
            if not line:
                del self._waiting[project]


def compilations_of(model: ModelSpec, metrics: Metrics) -> Compilations | None:
    """The line for the structured outputs that the model's engine compiles; None if it compiles none."""
    if model.structure_bounds is None:
        return None
    wait = metrics.structured_output_wait.labels(metrics.model_label(model.name))
    return Compilations(model.structure_bounds, wait.observe, all_tools=model.compiles_all_tools)
