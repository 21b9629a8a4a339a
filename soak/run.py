"""One run: the load, samples at intervals, and the decision."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from soak.drift import MIB, WARM_UP, Bounds, database_growth, drifts, growth
from soak.load import Load
from soak.sample import Sample
from soak.stack import Stack, running

# Of the jobs of the rate: with fewer, the machine was too slow, and the queue grew instead.
MIN_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Plan:
    """A run of `seconds` at `rate` jobs a second, with a sample each `interval_s`."""

    seconds: float
    rate: float
    interval_s: float
    bounds: Bounds


@dataclass(slots=True)
class Result:
    """The samples, and what failed."""

    plan: Plan
    jobs: int = 0
    samples: list[Sample] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


async def run(plan: Plan, folder: Path, say: Callable[[str], None]) -> Result:
    """Run a plan on a system of its own, with its logs and data in `folder`."""
    async with running(folder) as stack:
        load = Load(stack.client, plan.rate)
        loading = asyncio.create_task(load.run(plan.seconds))
        result = Result(plan)
        began = time.monotonic()
        say(f"warming up for {WARM_UP * plan.seconds:.0f} of {plan.seconds:.0f} s")
        while not loading.done():
            await asyncio.wait([loading], timeout=plan.interval_s)
            if time.monotonic() - began <= plan.seconds:
                result.samples.append(await _sample(stack, load, time.monotonic() - began))
                say(line(result.samples[-1]))
        await loading
        result.jobs = load.ended
        result.failures += load.problems + stack.restarts + drifts(result.samples, plan.bounds)
        if load.ended < MIN_SHARE * plan.rate * plan.seconds:
            result.failures.append(
                f"{load.ended / plan.seconds:.1f} jobs a second ended instead of {plan.rate:g}:"
                " this machine is too slow for the rate."
            )
        return result


async def _sample(stack: Stack, load: Load, seconds: float) -> Sample:
    return Sample(seconds, load.ended, await stack.database_bytes(), await asyncio.to_thread(stack.parts))


def line(sample: Sample) -> str:
    """Return a sample in one line."""
    parts = "  ".join(f"{name} {part.memory / MIB:.1f} MiB {part.files} files" for name, part in sample.parts.items())
    return f"{sample.jobs} jobs  database {sample.database / MIB:.1f} MiB  {parts}"


def report(result: Result) -> str:
    """Return the growth of each part after the warm-up, one per line."""
    lines = [f"{result.jobs} jobs in {result.plan.seconds:.0f} s", "after the warm-up:"]
    for part, grown in growth(result.samples).items():
        change = f"{grown.memory / MIB:+.1f} MiB, {grown.files:+d} open files"
        lines.append(f"  {part:<10} {grown.first.memory / MIB:6.1f} MiB  {change}")
    per_job = database_growth(result.samples)
    lines.append(f"  {'database':<10} {'no job ended' if per_job is None else f'{per_job:.0f} bytes a job'}")
    return "\n".join(lines)
