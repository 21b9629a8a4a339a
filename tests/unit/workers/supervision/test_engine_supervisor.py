"""An engine that died is restarted, and its prompt cache is filled before the worker takes jobs again."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from shared.domain.job import WorkerState
from tests.support.metrics import worker_metrics
from workers.execution.warm_up import WarmUp
from workers.supervision import engine_supervisor
from workers.supervision.engine_supervisor import EngineSupervisor


class Parts:
    """Everything that the supervisor controls. The engine dies as often as its cache is to be filled, but for once."""

    running = 0
    needed = True

    def __init__(self, deaths: int) -> None:
        self.deaths = deaths
        self.dead = True
        self.calls: list[str] = []
        self.resumed = asyncio.Event()

    async def start(self) -> None:
        self.calls.append("start")
        self.dead = False

    async def stop(self) -> None:
        self.calls.append("stop")

    async def run(self) -> None:
        self.calls.append("warm")
        self.deaths -= 1
        self.dead = self.deaths >= 0

    async def set_state(self, state: WorkerState, error: str | None = None) -> None:
        self.calls.append(state.value)

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        self.resumed.set()

    async def requeue_all(self) -> None:
        pass

    async def drain(self, within_s: float) -> None:
        pass


@pytest.mark.parametrize("deaths", [0, 2])
async def test_the_cache_is_filled_before_the_worker_is_ready(deaths: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even an engine that dies while its cache is filled is started again."""
    monkeypatch.setattr(engine_supervisor, "BACK_OFF_S", 0)
    parts, death = Parts(deaths), asyncio.Event()
    death.set()
    anything = cast(Any, parts)
    supervisor = EngineSupervisor(
        anything, death, anything, anything, anything, anything, worker_metrics("m"), "m",
        back_off_max_s=0, warm_up=cast(WarmUp, parts),
    )  # fmt: skip
    task = asyncio.create_task(supervisor.run())
    await parts.resumed.wait()
    task.cancel()
    once = ["restarting", "stop", "start", "warming", "warm"]
    assert parts.calls == [*once * (deaths + 1), "ready"]
