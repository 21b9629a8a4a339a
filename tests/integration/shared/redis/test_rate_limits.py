"""Sliding windows: never more than the limit in any 60 seconds, all limits or none, waits that are true."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from shared.redis import keys
from shared.redis.rate_limits import MAX_DELAY_S, Correction, Outcome, RateWindows, Window
from tests.conftest import TEST_REDIS_DB, Servers

KEY, OTHER = keys.rate_window(1, "", "requests"), keys.rate_window(1, "", "tokens")
MINUTE = 60


class Clock:
    """The time of the server, which the test moves. It starts within a second."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.25

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def windows(redis: Redis, clock: Clock) -> RateWindows:
    return RateWindows(redis, clock)


async def take(windows: RateWindows, amount: int = 1, limit: int = 10, *, soft: bool = False) -> Outcome:
    return await windows.take([Window(KEY, amount, limit, soft)])


def most_in_a_minute(taken: list[tuple[float, int]]) -> int:
    """The largest sum of amounts in any 60 seconds, which begin at one of them."""
    return max(sum(amount for at, amount in taken if start <= at < start + MINUTE) for start, _ in taken)


@pytest.mark.parametrize("seed", range(4))
async def test_never_more_than_the_limit_in_any_minute(windows: RateWindows, clock: Clock, seed: int) -> None:
    """Bursts, pauses and amounts at random, on both sides of each second; some wait as they are told."""
    draw = random.Random(seed)
    limit = draw.choice([1, 7, 40])
    taken: list[tuple[float, int]] = []
    for _ in range(400):
        clock.now += draw.choice([0, 0.001, 0.3, 0.999, 2.5, draw.uniform(0, 70)])
        amount = draw.randint(1, max(1, limit // 3))
        outcome = await take(windows, amount, limit)
        if not outcome.taken and draw.random() < 0.5:
            assert outcome.wait_s is not None
            clock.now += outcome.wait_s
            outcome = await take(windows, amount, limit)
            assert outcome.taken, "the wait was true"
        if outcome.taken:
            taken.append((clock.now, amount))
            in_window = sum(amount for at, amount in taken if at > clock.now - MINUTE)
            assert outcome.states[0].remaining <= limit - in_window
    assert most_in_a_minute(taken) <= limit
    assert len(taken) > 40


async def test_the_wait_is_exact(windows: RateWindows, clock: Clock) -> None:
    for _ in range(3):
        assert (await take(windows, limit=3)).taken
        clock.now += 10
    refused = await take(windows, limit=3)
    assert (refused.taken, refused.decisive, refused.states[0].remaining) == (False, 0, 0)
    assert refused.wait_s is not None
    assert 30 < refused.wait_s <= 31, "a minute, and the rest of its second, after the first request"
    clock.now += refused.wait_s - 0.002
    assert not (await take(windows, limit=3)).taken
    clock.now += 0.002
    assert (await take(windows, limit=3)).taken
    assert not (await take(windows, limit=3)).taken


async def test_an_amount_above_the_limit_never_fits(windows: RateWindows) -> None:
    refused = await take(windows, 11, 10)
    assert (refused.taken, refused.wait_s, refused.decisive) == (False, None, 0)
    assert (await take(windows, 10, 10)).taken


async def test_all_windows_or_none(windows: RateWindows, redis: Redis) -> None:
    def both(requests: int, tokens: int) -> list[Window]:
        return [Window(KEY, requests, 10), Window(OTHER, tokens, 100)]

    assert (await windows.take(both(1, 60))).taken
    refused = await windows.take(both(1, 60))
    assert (refused.taken, refused.decisive) == (False, 1)
    assert [state.remaining for state in refused.states] == [9, 40]
    assert (await windows.take(both(1, 40))).taken, "the refused request has taken nothing"
    assert [state.remaining for state in (await windows.take(both(0, 0))).states] == [8, 0]
    assert 0 < await redis.ttl(KEY) <= 62


async def test_the_longest_wait_of_all_windows_is_reported(windows: RateWindows, clock: Clock) -> None:
    await windows.take([Window(KEY, 1, 1)])
    clock.now += 20
    await windows.take([Window(OTHER, 1, 1)])
    refused = await windows.take([Window(KEY, 1, 1), Window(OTHER, 1, 1)])
    assert (refused.taken, refused.decisive) == (False, 1)
    assert refused.wait_s is not None
    clock.now += refused.wait_s
    assert (await windows.take([Window(KEY, 1, 1), Window(OTHER, 1, 1)])).taken


@pytest.fixture
async def clients(servers: Servers, redis: Redis) -> AsyncIterator[list[Redis]]:
    """Eight connections, as of eight processes, to the emptied database."""
    clients = [Redis.from_url(servers.redis(TEST_REDIS_DB)) for _ in range(8)]
    yield clients
    for client in clients:
        await client.aclose()


async def test_eight_processes_share_one_limit(clients: list[Redis], clock: Clock) -> None:
    limit, taken = 100, list[tuple[float, int]]()

    async def process(client: Redis) -> None:
        windows = RateWindows(client, clock)
        for _ in range(60):
            at = clock.now
            if (await take(windows, limit=limit)).taken:
                taken.append((at, 1))

    for _ in range(3):  # full, then a little room after each step
        await asyncio.gather(*map(process, clients))
        clock.now += 30.5
    assert most_in_a_minute(taken) == limit
    assert len(taken) == 2 * limit, "nothing of the limit is lost either"


async def test_the_clock_of_the_server_is_used(redis: Redis) -> None:
    windows = RateWindows(redis)
    first, second = await take(windows, limit=1), await take(windows, limit=1)
    assert (first.taken, second.taken) == (True, False)
    seconds = int((await redis.time())[0])
    assert seconds - 5 <= first.states[0].second <= seconds
    assert second.wait_s is not None
    assert 50 < second.wait_s <= 61


@pytest.mark.parametrize("back_s", [1, 30, 60, 61, 3600, 86_400])
async def test_a_clock_that_is_set_back(windows: RateWindows, clock: Clock, back_s: int) -> None:
    """Nothing is admitted twice, the wait is true, and no window is blocked for longer than a minute more."""
    assert (await take(windows, 8)).taken
    clock.now -= back_s
    assert (await take(windows, 2)).taken
    refused = await take(windows, 1)
    assert not refused.taken
    assert refused.wait_s is not None
    assert refused.wait_s <= 2 * MINUTE + 1
    clock.now += refused.wait_s - 0.002
    assert not (await take(windows, 1)).taken
    clock.now += 0.002
    assert (await take(windows, 10)).taken


@pytest.mark.parametrize("back_s", [30, 61, 3600])
async def test_the_time_of_a_full_window_goes_on_after_the_clock_was_set_back(
    windows: RateWindows, clock: Clock, back_s: int
) -> None:
    assert (await take(windows, 10)).taken
    clock.now -= back_s
    refused = await take(windows, 1)
    assert not refused.taken
    assert refused.wait_s is not None
    clock.now += refused.wait_s - 0.002
    assert not (await take(windows, 1)).taken
    clock.now += 0.002
    assert (await take(windows, 10)).taken


async def test_soft_windows_delay(windows: RateWindows, clock: Clock) -> None:
    """Requests start one after the other, so that the limit holds for their starts."""
    starts: list[tuple[float, int]] = []
    for _ in range(25):
        outcome = await take(windows, limit=10, soft=True)
        assert outcome.taken
        assert outcome.wait_s is not None
        assert outcome.decisive == (0 if outcome.wait_s else None)
        starts.append((round(clock.now + outcome.wait_s, 3), 1))
        clock.now += 0.1
    assert most_in_a_minute(starts) == 10
    assert [at for at, _ in starts] == sorted(at for at, _ in starts)
    assert starts[-1][0] - clock.now < 2 * MINUTE + 2
    assert (await take(windows, 11, 10, soft=True)).wait_s is None, "it would never fit"
    clock.now += 3 * MINUTE + 5
    assert (await take(windows, 10, 10)).taken, "the windows of the delayed requests have passed"


async def test_the_delay_is_bounded(windows: RateWindows, clock: Clock) -> None:
    outcome = None
    for _ in range(MAX_DELAY_S // MINUTE + 1):
        outcome = await take(windows, limit=1, soft=True)
        if not outcome.taken:
            break
    assert outcome is not None
    assert not outcome.taken
    assert outcome.wait_s is not None
    clock.now += outcome.wait_s
    assert (await take(windows, limit=1, soft=True)).taken


async def test_a_hard_window_refuses_what_a_soft_one_would_delay(windows: RateWindows) -> None:
    pair = [Window(KEY, 1, 1, soft=True), Window(OTHER, 1, 1)]
    assert (await windows.take(pair)).taken
    refused = await windows.take(pair)
    assert (refused.taken, refused.decisive) == (False, 1)
    assert (await windows.take([Window(KEY, 1, 2, soft=True)])).wait_s == 0, "the soft window has taken nothing"


async def test_unused_amounts_are_given_back(windows: RateWindows, clock: Clock) -> None:
    first = (await take(windows, 10)).states[0]
    clock.now += 5
    await windows.settle([Correction(KEY, first.second, -7)])
    outcome = await take(windows, 7)
    assert (outcome.taken, outcome.states[0].remaining) == (True, 0)
    await windows.settle([Correction(KEY, first.second, -100)])
    assert (await take(windows, 0)).states[0].remaining == 3, "no more than what was taken in that second"
    clock.now += MINUTE + 2
    await windows.settle([Correction(KEY, first.second, -3)])
    assert (await take(windows, 10)).taken
    assert not (await take(windows, 1)).taken, "what had left the window is not given back again"


async def test_what_was_used_beyond_the_estimate_counts_now(windows: RateWindows, clock: Clock, redis: Redis) -> None:
    first = (await take(windows, 4)).states[0]
    clock.now += 30
    await windows.settle([Correction(KEY, first.second, 20)])
    refused = await take(windows, 1)
    assert (refused.taken, refused.states[0].remaining) == (False, 0)
    assert refused.wait_s is not None
    assert 60 < refused.wait_s <= 61
    clock.now += refused.wait_s
    assert (await take(windows, 10)).taken
    await redis.flushdb()
    await windows.settle([Correction(KEY, first.second, -3), Correction(OTHER, first.second, 3)])
    assert (await take(windows, 10)).taken
    assert (await windows.take([Window(OTHER, 7, 10)])).states[0].remaining == 0
    assert 0 < await redis.ttl(OTHER) <= 62
