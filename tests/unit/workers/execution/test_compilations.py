"""Large structured outputs take turns at the engine, by project; cancelled ones leave the line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

import pytest

from shared.domain.job import Job, JobStatus
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, StructuredOutputs
from shared.domain.structure_size import StructureBounds
from tests.support.structures import ORDINARY, record
from tests.support.waiting import eventually
from workers.execution.compilations import Compilations

# Estimated to take about 0.9 s: no test waits for that.
LARGE = StructuredOutputs(json_schema={"type": "array", "items": {"type": "integer"}, "maxItems": 110_000})
LENGTHS = StructuredOutputs(json_schema=ORDINARY["lengths"]["json"])
SMALL = StructuredOutputs(json_schema=record(5))


def job(project: int, structure: StructuredOutputs | None = LARGE) -> Job:
    request = GenerateRequest(prompt="x", structured_outputs=structure)
    now = datetime.now(UTC)
    return Job(
        id=f"job_{project}", model="m", priority=3, status=JobStatus.IN_PROGRESS, request=request, created_at=now,
        owner=Owner(project, 1), attempt=1,
    )  # fmt: skip


class Line:
    """The structures of jobs in one line, each of which is compiled until the test ends it."""

    def __init__(self, threads: int = 1) -> None:
        self.waits: list[float] = []
        self.compilations = Compilations(StructureBounds(), self.waits.append, threads=threads)
        # What is being compiled, in the order of its turns, and how to end it.
        self.turns: list[str] = []
        self._compiled: dict[str, Callable[[], None]] = {}
        self._ended: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def add(self, name: str, project: int, structure: StructuredOutputs | None = LARGE) -> asyncio.Task[None]:
        self._ended[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._run(name, project, structure))
        await settle()
        return self.tasks[name]

    async def compiled(self, name: str) -> None:
        self._compiled[name]()
        await settle()

    async def _run(self, name: str, project: int, structure: StructuredOutputs | None) -> None:
        async with self.compilations.turn(job(project, structure)) as compiled:
            self.turns.append(name)
            self._compiled[name] = compiled
            await self._ended[name].wait()


async def settle() -> None:
    """Let all tasks run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    line = Line()
    yield line
    for task in line.tasks.values():
        task.cancel()
    await asyncio.gather(*line.tasks.values(), return_exceptions=True)


async def test_others_wait_for_one_compilation_of_a_flood(line: Line) -> None:
    for number in range(20):
        await line.add(f"flood {number}", project=1)
    await line.add("other", project=2)
    assert (line.turns, line.compilations.waiting) == (["flood 0"], 20)
    await line.compiled("flood 0")
    assert line.turns == ["flood 0", "other"]
    await line.add("a third one", project=3)
    await line.compiled("other")
    await line.compiled("a third one")
    assert line.turns == ["flood 0", "other", "a third one", "flood 1"]
    assert len(line.waits) == 4


async def test_a_cancelled_job_leaves_the_line(line: Line) -> None:
    for number in range(4):
        await line.add(f"job {number}", project=1)
    for number in (1, 2):
        line.tasks[f"job {number}"].cancel()
    await settle()
    assert line.compilations.waiting == 1
    await line.compiled("job 0")
    assert line.turns == ["job 0", "job 3"]


async def test_a_job_that_is_cancelled_in_its_turn_is_still_compiled(line: Line) -> None:
    """The engine does not stop: the next one starts after the estimated time."""
    await line.add("cancelled", project=1)
    await line.add("next", project=2)
    line.tasks["cancelled"].cancel()
    await settle()
    assert line.turns == ["cancelled"]
    await _start(line, "next")


async def test_a_turn_ends_after_the_estimated_time(line: Line) -> None:
    """A long prompt, or an engine without a free slot, delays the first output."""
    await line.add("slow", project=1)
    await line.add("next", project=1)
    await _start(line, "next")
    # Its end does not count twice.
    await line.compiled("slow")
    await line.add("last", project=1)
    assert line.turns == ["slow", "next"]


async def _start(line: Line, name: str) -> None:
    async def started() -> bool:
        return name in line.turns

    await eventually(started, f"{name} has its turn")


@pytest.mark.parametrize("structure", [None, SMALL, LENGTHS])
async def test_small_structures_and_other_jobs_do_not_wait(line: Line, structure: StructuredOutputs | None) -> None:
    await line.add("large", project=1)
    for number in range(3):
        await line.add(f"small {number}", 1, structure)
    assert line.turns == ["large", "small 0", "small 1", "small 2"]


async def test_as_many_are_compiled_as_there_are_threads() -> None:
    line = Line(threads=2)
    for number in range(3):
        await line.add(f"job {number}", project=1)
    assert line.turns == ["job 0", "job 1"]
    for task in line.tasks.values():
        task.cancel()
    await asyncio.gather(*line.tasks.values(), return_exceptions=True)


async def test_a_job_that_is_cancelled_as_its_turn_comes_passes_it_on(line: Line) -> None:
    for number in range(3):
        await line.add(f"job {number}", project=1)
    line._compiled["job 0"]()  # the turn has been given, but the task has not run
    line.tasks["job 1"].cancel()
    await settle()
    assert line.turns == ["job 0", "job 2"]
