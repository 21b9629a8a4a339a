"""A faulty worker asks Celery to stop, gives its jobs up and ends the process if Celery does not."""

from __future__ import annotations

import asyncio
import os

import pytest
from celery.worker import state as celery_state

from workers.supervision import process_shutdown
from workers.supervision.process_shutdown import EXIT_FAULT, ProcessShutdown


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> asyncio.Queue[int]:
    """The codes of forced exits, which end nothing here."""
    codes: asyncio.Queue[int] = asyncio.Queue()
    monkeypatch.setattr(os, "_exit", codes.put_nowait)
    monkeypatch.setattr(process_shutdown, "FORCE_AFTER_S", 0)
    monkeypatch.setattr(celery_state, "should_stop", None)
    return codes


async def test_jobs_are_released_before_the_process_is_ended(exits: asyncio.Queue[int]) -> None:
    releasing, released = asyncio.Event(), asyncio.Event()

    async def release() -> None:
        releasing.set()
        await released.wait()

    ProcessShutdown(release).begin()
    assert celery_state.should_stop == EXIT_FAULT
    await releasing.wait()
    assert exits.empty()
    released.set()
    assert await exits.get() == EXIT_FAULT


async def test_a_second_fault_releases_nothing_twice(exits: asyncio.Queue[int]) -> None:
    releases = 0

    async def release() -> None:
        nonlocal releases
        releases += 1

    shutdown = ProcessShutdown(release)
    shutdown.begin()
    shutdown.begin()
    await exits.get()
    assert releases == 1
    assert exits.empty()


async def test_the_process_ends_though_its_jobs_cannot_be_released(exits: asyncio.Queue[int]) -> None:
    """Their lease expires; a process that stayed would hold them."""

    async def release() -> None:
        raise ValueError("the heartbeat's statement is wrong")

    ProcessShutdown(release).begin()
    assert await exits.get() == EXIT_FAULT
