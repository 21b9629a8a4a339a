"""`python -m benchmarks.load`: reads a plan from stdin, prints `ready` once held streams are open, then a summary."""

from __future__ import annotations

import asyncio
import gc
import resource
import sys
import time
from collections.abc import Iterable
from time import perf_counter

import orjson
import uvloop

from benchmarks.load.cancel import Cancels
from benchmarks.load.driver import Driver
from benchmarks.load.hold import Hold
from benchmarks.load.plan import Plan, Spread, Summary
from benchmarks.statistics import percentile


def spread(seconds: Iterable[float]) -> Spread:
    """Return percentiles in milliseconds."""
    ordered = sorted(seconds)
    if not ordered:
        return Spread()
    p50, p95, p99 = (1000 * percentile(ordered, share) for share in (0.5, 0.95, 0.99))
    return Spread(len(ordered), p50, p95, p99, 1000 * ordered[-1])


def ready() -> None:
    sys.stdout.buffer.write(b"ready\n")
    sys.stdout.flush()


async def load(plan: Plan) -> Summary:
    driver = Driver(plan)
    cpu = time.process_time()
    await driver.run()
    cpu = time.process_time() - cpu
    good = [exchange for exchange in driver.exchanges if not exchange.failure]
    bad = [exchange for exchange in driver.exchanges if exchange.failure]
    return Summary(
        requests=len(good),
        failed=len(bad),
        first_failure=bad[0].failure if bad else "",
        seconds=max((exchange.last for exchange in driver.exchanges), default=driver.began) - driver.began,
        tokens=sum(exchange.tokens for exchange in good),
        first=spread(exchange.first - exchange.due for exchange in good if exchange.first),
        latency=spread(exchange.last - exchange.due for exchange in good),
        gap=spread(driver.gaps),
        cpu_s=cpu,
        ids=[orjson.loads(exchange.body)["id"] for exchange in good] if plan.collect else [],
    )


async def hold(plan: Plan) -> Summary:
    began = perf_counter()
    streams = Hold(plan)
    await streams.open()
    opened = perf_counter() - began
    ready()
    held = await streams.keep(plan.seconds or 0)
    failures = streams.failures
    return Summary(
        requests=len(plan.ids) - len(failures),
        failed=len(failures),
        first_failure=failures[0] if failures else "",
        seconds=opened,
        tokens=0,
        first=Spread(),
        latency=Spread(),
        gap=Spread(),
        late=spread(streams.late),
        held=held,
        cpu_s=time.process_time(),
    )


async def cancel(plan: Plan) -> Summary:
    cancels = Cancels(plan)
    began = perf_counter()
    await cancels.run()
    return Summary(
        requests=len(cancels.seconds),
        failed=len(cancels.failures),
        first_failure=cancels.failures[0] if cancels.failures else "",
        seconds=perf_counter() - began,
        tokens=0,
        first=Spread(),
        latency=spread(cancels.seconds),
        gap=Spread(),
        cpu_s=time.process_time(),
    )


async def run(plan: Plan) -> Summary:
    async with asyncio.timeout(plan.timeout_s):
        return await {"load": load, "hold": hold, "cancel": cancel}[plan.kind](plan)


def main() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    plan = Plan.load(sys.stdin.buffer.readline())
    gc.freeze()
    gc.disable()  # a collection would show as a gap that the server did not cause
    summary = uvloop.run(run(plan))
    sys.stdout.buffer.write(summary.dump() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
