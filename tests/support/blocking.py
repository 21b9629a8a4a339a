"""Runs a worker whose event loop a request can block: `python -m tests.support.blocking MODEL`.

A prompt that begins with `block N` blocks the loop for N seconds when its answer begins, in the first attempt only: the
worker may get the job again before another one has started. The thread sleeps, so the process's other threads run, as
they do beside Python code that computes.
"""

from __future__ import annotations

import runpy
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from shared.domain.request import GenerateRequest
from workers.engines.base import NO_PRIOR, Prior
from workers.engines.simulated.engine import SimulatedEngine


def block(seconds: float) -> str:
    """The prompt of a request that blocks the loop."""
    return f"block {seconds} s"


def main() -> None:
    generate = SimulatedEngine.generate

    async def blocking(
        engine: SimulatedEngine, request_id: str, request: GenerateRequest, prior: Prior = NO_PRIOR
    ) -> AsyncGenerator[Any, None]:
        async with aclosing(generate(engine, request_id, request, prior)) as items:
            yield await anext(items)
            first = request_id.endswith("-1")
            if first and isinstance(request.prompt, str) and request.prompt.startswith("block "):
                time.sleep(float(request.prompt.split()[1]))  # noqa: ASYNC251  # this is the fault
            async for item in items:
                yield item

    SimulatedEngine.generate = blocking  # type: ignore[assignment,method-assign]
    runpy.run_module("workers.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
