"""Sliding windows of a minute in Redis: what was taken from limits of requests and tokens. Redis may lose them.

A window is a hash with an amount for each of the last 60 seconds. It expires a minute after it was used last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files

from redis.asyncio import Redis

# The longest time for which a request waits because of soft limits.
MAX_DELAY_S = 3600
_STATE = 3


@dataclass(frozen=True, slots=True)
class Window:
    """What is to be taken from a window: `amount` of the `limit` a minute; 0 only reads it.

    A soft window takes an amount that does not fit now later; all others refuse it.
    """

    key: str
    amount: int
    limit: int
    soft: bool = False


@dataclass(frozen=True, slots=True)
class WindowState:
    """A window after a call: what is left of the limit, the seconds until it is full again, and the second (of the
    window's own clock) that the amount was taken in."""

    remaining: int
    reset_s: float
    second: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether the amounts were taken from all windows, or from none.

    `wait_s`: if they were taken, the seconds that the request has to wait because of soft windows; otherwise those
    after which they fit, None if they never do. `decisive` is the index of the window that decides this.
    """

    taken: bool
    wait_s: float | None
    decisive: int | None
    states: Sequence[WindowState]


@dataclass(frozen=True, slots=True)
class Correction:
    """A difference between what was used and what was taken from a window in a second."""

    key: str
    second: int
    difference: int


class RateWindows:
    """Takes amounts from windows, and corrects them afterwards. Methods raise redis-py's errors, and OSError."""

    def __init__(self, redis: Redis, clock: Callable[[], float] | None = None) -> None:
        """`clock` is for tests: the time in seconds, instead of that of the server."""
        self._take = redis.register_script(_script("rate_limits"))
        self._settle = redis.register_script(_script("rate_limits_settle"))
        self._clock = clock

    async def take(self, windows: Sequence[Window]) -> Outcome:
        """Take an amount from each window, in one round trip."""
        args: list[str | int] = [self._now(), MAX_DELAY_S]
        for window in windows:
            args += (window.amount, window.limit, int(window.soft))
        taken, wait_ms, decisive, *states = await self._take(keys=[window.key for window in windows], args=args)
        return Outcome(
            taken=taken == 1,
            wait_s=None if wait_ms < 0 else wait_ms / 1000,
            decisive=decisive - 1 if decisive else None,
            states=[
                WindowState(states[at], states[at + 1] / 1000, states[at + 2]) for at in range(0, len(states), _STATE)
            ],
        )

    async def settle(self, corrections: Sequence[Correction]) -> None:
        """Correct amounts that were taken, in one round trip."""
        args: list[str | int] = [self._now()]
        for item in corrections:
            args += (item.second, item.difference)
        await self._settle(keys=[item.key for item in corrections], args=args)

    def _now(self) -> str:
        return "" if self._clock is None else str(round(self._clock() * 1_000_000))


def _script(name: str) -> str:
    return files("shared.redis").joinpath(f"{name}.lua").read_text(encoding="utf-8")
