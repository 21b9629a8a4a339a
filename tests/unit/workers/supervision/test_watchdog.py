"""A worker is stuck if messages wait, slots are free and none is consumed."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import create_async_engine

from shared.config.models.simulated import SimulatedModel
from shared.postgres.claim_store import ClaimStore
from shared.redis.event_log import EventLog
from tests.support.metrics import worker_metrics
from workers.engines.simulated.engine import SimulatedEngine
from workers.execution.attempts.context import AttemptContext
from workers.execution.log_writer import LogWriter
from workers.execution.runner import Runner
from workers.execution.slots import SlotPool
from workers.supervision.watchdog import STUCK_S, Watchdog

SLOTS = 4
LONG = STUCK_S + 1


@pytest.fixture
def runner() -> Runner:
    """A runner without recent messages. It never connects to its servers."""
    store = ClaimStore(create_async_engine("postgresql+asyncpg://nowhere"), "w")
    logs = EventLog(Redis(host="nowhere"))
    context = AttemptContext(
        worker="w",
        engine=SimulatedEngine(SimulatedModel(name="m", engine="simulated", slots=SLOTS)),
        store=store,
        logs=logs,
        log_writer=LogWriter(logs, store.list_claims, late_s=1),
        log_ttl_s=1,
        max_attempts=3,
        send=lambda _: None,
        on_engine_death=lambda: None,
        metrics=worker_metrics(),
    )
    runner = Runner(context, SlotPool(SLOTS, yields=True))
    runner.last_message = 0.0
    return runner


@pytest.fixture
def watchdog(runner: Runner) -> Watchdog:
    return Watchdog(runner, Redis(host="nowhere"), "m", lambda: None)


def test_a_stuck_consumer_is_detected_in_time(watchdog: Watchdog) -> None:
    detected = [second for second in range(100, 130) if watchdog.stuck(1, float(second))]
    assert detected[0] - 100 <= 14, "within 15 s, with one check each second"
    assert detected[0] - 100 > STUCK_S


def test_a_worker_with_an_empty_queue_is_not_stuck(watchdog: Watchdog) -> None:
    assert not any(watchdog.stuck(0, float(second)) for second in range(100, 200))


def test_an_empty_queue_restarts_the_wait(watchdog: Watchdog) -> None:
    assert not watchdog.stuck(1, 100.0)
    assert not watchdog.stuck(0, 105.0)
    assert not watchdog.stuck(1, 100.0 + LONG)
    assert watchdog.stuck(1, 100.0 + 2 * LONG)


def test_a_full_worker_is_not_stuck(watchdog: Watchdog, runner: Runner) -> None:
    waiting = {0: 1, 3: 2, 9: 4}
    for _ in range(SLOTS):
        runner.slot_pool.acquire(batch=False)
    assert watchdog.consumable(waiting) == 0
    runner.slot_pool.release(batch=False)
    assert watchdog.consumable(waiting) == 7
    runner.slot_pool.acquire(batch=True)
    assert watchdog.consumable(waiting) == 3, "a batch job takes a slot from other batch jobs only"


def test_a_paused_worker_is_not_stuck(watchdog: Watchdog, runner: Runner) -> None:
    runner.pause()
    assert not any(watchdog.stuck(5, float(second)) for second in range(100, 200))
    runner.resume()
    assert not watchdog.stuck(5, 200.0)
    assert watchdog.stuck(5, 200.0 + LONG)


def test_a_worker_that_consumes_messages_is_not_stuck(watchdog: Watchdog, runner: Runner) -> None:
    """The queue is long and slots are free at each check, because messages arrive one by one."""
    for second in range(100, 200):
        assert not watchdog.stuck(50, float(second))
        runner.last_message = second + 0.5
    assert not watchdog.stuck(50, 200.0), "the last message has just arrived"
    assert watchdog.stuck(50, 200.0 + LONG)


def test_a_message_restarts_the_wait(watchdog: Watchdog, runner: Runner) -> None:
    assert not watchdog.stuck(1, 100.0)
    runner.last_message = 100.0 + STUCK_S
    assert not watchdog.stuck(1, 100.0 + LONG)
