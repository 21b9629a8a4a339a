"""When a worker counts as stuck: messages wait, there is room, and none is taken."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import create_async_engine

from shared.config.models.simulated import SimulatedModel
from shared.postgres.claim_store import ClaimStore
from shared.redis.event_log import EventLog
from workers.engines.simulated.engine import SimulatedEngine
from workers.execution.attempt import AttemptContext
from workers.execution.log_writer import LogWriter
from workers.execution.runner import Runner
from workers.execution.slots import SlotPool
from workers.supervision.watchdog import STUCK_S, Watchdog

SLOTS = 4
LONG = STUCK_S + 1


@pytest.fixture
def runner() -> Runner:
    """A runner that has taken nothing for long. Its servers are never asked."""
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
    )
    runner = Runner(context, SlotPool(SLOTS, yields=True))
    runner.last_message = 0.0
    return runner


@pytest.fixture
def watchdog(runner: Runner) -> Watchdog:
    return Watchdog(runner, Redis(host="nowhere"), "m", lambda: None)


def test_messages_that_wait_for_long_are_noticed_in_time(watchdog: Watchdog) -> None:
    noticed = [second for second in range(100, 130) if watchdog.stuck(1, float(second))]
    assert noticed[0] - 100 <= 14, "with a look each second, within 15 s"
    assert noticed[0] - 100 > STUCK_S


def test_an_empty_queue_is_no_fault(watchdog: Watchdog) -> None:
    assert not any(watchdog.stuck(0, float(second)) for second in range(100, 200))


def test_a_queue_that_was_empty_in_between_starts_anew(watchdog: Watchdog) -> None:
    assert not watchdog.stuck(1, 100.0)
    assert not watchdog.stuck(0, 105.0)
    assert not watchdog.stuck(1, 100.0 + LONG)
    assert watchdog.stuck(1, 100.0 + 2 * LONG)


def test_a_full_worker_is_no_fault(watchdog: Watchdog, runner: Runner) -> None:
    waiting = {0: 1, 3: 2, 9: 4}
    for _ in range(SLOTS):
        runner.slot_pool.take(batch=False)
    assert watchdog.untaken(waiting) == 0
    runner.slot_pool.leave(batch=False)
    assert watchdog.untaken(waiting) == 7
    runner.slot_pool.take(batch=True)
    assert watchdog.untaken(waiting) == 3, "a batch's job is in the way of other batches only"


def test_a_worker_that_takes_nothing_on_purpose_is_no_fault(watchdog: Watchdog, runner: Runner) -> None:
    runner.pause()
    assert not any(watchdog.stuck(5, float(second)) for second in range(100, 200))
    runner.resume()
    assert not watchdog.stuck(5, 200.0)
    assert watchdog.stuck(5, 200.0 + LONG)


def test_a_worker_that_takes_messages_is_no_fault(watchdog: Watchdog, runner: Runner) -> None:
    """A long queue, and room whenever one looks: messages come one by one."""
    for second in range(100, 200):
        assert not watchdog.stuck(50, float(second))
        runner.last_message = second + 0.5
    assert not watchdog.stuck(50, 200.0), "the last one came just now"
    assert watchdog.stuck(50, 200.0 + LONG)


def test_a_message_that_comes_ends_the_wait(watchdog: Watchdog, runner: Runner) -> None:
    assert not watchdog.stuck(1, 100.0)
    runner.last_message = 100.0 + STUCK_S
    assert not watchdog.stuck(1, 100.0 + LONG)
