"""Applies the rate limits to requests: takes what they need from the windows of all limits, or from none.

Requests count when they are admitted. Tokens are reserved by an estimate, and corrected once the job has ended
(`api.limits.settlement`). Without limits, Redis is not called.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from redis.exceptions import RedisError

from api.http.rate_limits import RATE_LIMIT_STATUS, LeftOfLimit
from api.limits.estimate import NO_TOKENS, TokenEstimate, TokenEstimator
from api.limits.rules import EACH_USER, RATES, UNITS, Limit, LimitBook, LimitScope, Measure, Rule
from shared.domain.errors import RateLimited, Unavailable
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.redis.rate_limits import Correction, Outcome, RateWindows, Window
from shared.runtime.aio import timeout_of_others
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

# Redis is unavailable if it takes longer. After that, requests do not wait for it for so long.
TIMEOUT_S = 0.25
PAUSE_S = 1.0
# Lines of batches leave this share of each limit to other requests.
KEPT_FROM_BATCHES = 0.2


@dataclass(frozen=True, slots=True)
class Part:
    """What was taken from one window, in which second of it."""

    key: str
    second: int
    amount: int
    measure: Measure


@dataclass(frozen=True, slots=True)
class Taken:
    """What a job has taken from the windows. `delay_s`: it must not start earlier, because of soft limits.

    `bounded`: the job cannot use more tokens than it has taken.
    """

    parts: Sequence[Part] = ()
    delay_s: float | None = None
    bounded: bool = True

    @property
    def has_tokens(self) -> bool:
        """Whether tokens were taken, which are corrected at the end."""
        return any(part.measure is Measure.TOKENS for part in self.parts)

    def returned(self) -> list[Correction]:
        """The corrections that return everything."""
        return [Correction(part.key, part.second, -part.amount) for part in self.parts]

    def returned_requests(self) -> list[Correction]:
        """The corrections that return the requests."""
        return [
            Correction(part.key, part.second, -part.amount) for part in self.parts if part.measure is Measure.REQUESTS
        ]

    def settled(self, tokens: int) -> list[Correction]:
        """The corrections after a job that has used so many tokens."""
        return [
            Correction(part.key, part.second, tokens - part.amount)
            for part in self.parts
            if part.measure is Measure.TOKENS and part.amount != tokens
        ]


NOTHING = Taken()


class RateLimiter:
    """Admits requests within the rate limits."""

    def __init__(
        self,
        book: LimitBook,
        windows: RateWindows,
        estimator: TokenEstimator,
        metrics: Metrics,
        *,
        without_redis: Literal["allow", "refuse"],
    ) -> None:
        """`without_redis`: what happens to requests while Redis is unavailable."""
        self._book = book
        self._windows = windows
        self._estimator = estimator
        self._metrics = metrics
        self._refuses = without_redis == "refuse"
        self._retry_at = 0.0

    async def take(self, new: NewJob, *, of_batch: bool = False) -> Taken:
        """Take what an admitted job needs. Jobs that the server submits itself, for another request, need nothing.

        A line of a batch takes only what leaves a part of each limit free; one that needs more than that waits for it.

        Raises:
            RateLimited: a limit is reached.
            Unavailable: Redis is unavailable, and the setting is to refuse requests then.
        """
        if new.kind is not None:
            return NOTHING
        rules = self._book.rules(new.owner, new.model, RATES)
        if not rules:
            return NOTHING
        needs_tokens = any(rule.measure is Measure.TOKENS for rule in rules)
        return await self._take(rules, self._estimator.estimate(new) if needs_tokens else NO_TOKENS, of_batch=of_batch)

    async def together(self, refused: Sequence[RateLimited], taken: Sequence[Taken]) -> RateLimited:
        """The error of several requests that are accepted all or none: its wait is that for all of them.

        Those that were not refused have `taken` their part, which they return afterwards.
        """
        first, limits, own = refused[0], dict[str, int](), Counter[str]()
        for one in taken:
            own.update({part.key: part.amount for part in one.parts})
        amounts = own.copy()
        for error in refused:
            amounts.update({key: amount for key, (amount, _) in error.asked.items()})
            limits |= {key: limit for key, (_, limit) in error.asked.items()}
        if any(error.wait_s is None for error in refused) or any(amounts[key] > limit for key, limit in limits.items()):
            return first.with_wait(None)
        if not limits:  # soft ones alone refuse them
            return first
        # What they have taken themselves is the newest in the windows, and is there no more when they are sent again.
        windows = [Window(key, amounts[key], limit + own[key]) for key, limit in limits.items()]
        try:
            outcome = await self._call(windows)
        except Unavailable:
            return first
        if outcome is None or outcome.wait_s is None:
            return first
        if outcome.taken:  # there is room by now
            states = zip(windows, outcome.states, strict=True)
            await self.settle([Correction(window.key, state.second, -window.amount) for window, state in states])
            return first
        return first.with_wait(outcome.wait_s)

    async def take_request(self, owner: Owner, model: str) -> None:
        """Take a request that runs no job, such as one that counts tokens; raises as `take`."""
        if rules := self._book.rules(owner, model, (Measure.REQUESTS,)):
            await self._take(rules, NO_TOKENS)

    def check_requests(self, owner: Owner, model: str, number: int) -> None:
        """Check that the limits allow so many requests at the same time. Nothing is taken.

        Raises:
            RateLimited: a limit never does.
        """
        for rule in self._book.rules(owner, model, (Measure.REQUESTS,)):
            if number > rule.value and not rule.soft:
                self._metrics.rate_limited.labels(UNITS[rule.measure], rule.scope.kind, "refused").inc()
                raise RateLimited(_too_large(rule, number, "Send fewer prompts at a time."), wait_s=None)

    async def _take(self, rules: Sequence[Rule], tokens: TokenEstimate, *, of_batch: bool = False) -> Taken:
        windows = [_window(rule, tokens, of_batch=of_batch) for rule in rules]
        outcome = await self._call(windows)
        if outcome is None:
            return NOTHING
        if not of_batch:
            _report(rules, outcome)
        if not outcome.taken:
            assert outcome.decisive is not None
            rule = rules[outcome.decisive]
            if not of_batch:
                self._metrics.rate_limited.labels(UNITS[rule.measure], rule.scope.kind, "refused").inc()
            # Soft limits refuse nothing because several requests need more than a minute together.
            asked = {window.key: (window.amount, window.limit) for window in windows if not window.soft}
            raise RateLimited(_message(rule, windows[outcome.decisive], outcome), wait_s=outcome.wait_s, asked=asked)
        if outcome.wait_s and outcome.decisive is not None:
            rule = rules[outcome.decisive]
            self._metrics.rate_limited.labels(UNITS[rule.measure], rule.scope.kind, "delayed").inc()
        parts = [
            Part(window.key, state.second, window.amount, rule.measure)
            for rule, window, state in zip(rules, windows, outcome.states, strict=True)
        ]
        return Taken(parts, outcome.wait_s or None, tokens.counted and tokens.bounded)

    async def _call(self, windows: Sequence[Window]) -> Outcome | None:
        """Take the amounts; None if Redis is unavailable and requests are allowed then."""
        if (started_at := time.monotonic()) >= self._retry_at:
            try:
                async with timeout_of_others(TIMEOUT_S):
                    outcome = await self._windows.take(windows)
            except (RedisError, OSError) as error:  # TimeoutError is an OSError
                self._retry_at = time.monotonic() + PAUSE_S
                logger.warning("rate limits cannot be checked: %s", error or type(error).__name__)
            else:
                self._metrics.rate_limit_time.observe(time.monotonic() - started_at)
                return outcome
        self._metrics.rate_limits_unavailable.labels("refused" if self._refuses else "allowed").inc()
        if self._refuses:
            raise Unavailable("Rate limits cannot be checked, because Redis is unavailable; try again.")
        return None

    async def left(self, limit: Limit) -> Mapping[str, LeftOfLimit] | None:
        """What is left of the rates of a limit, by `requests` and `tokens`. None if each project or end user has its
        own, and while Redis is unavailable."""
        if limit.project_id is None or limit.end_user == EACH_USER:
            return None
        scope = LimitScope.of(limit, Owner(limit.project_id, limit.key_id or 0, limit.end_user))
        values = {measure: limit.allowances[measure].value for measure in RATES if measure in limit.allowances}
        windows = [Window(scope.window_key(measure), 0, value) for measure, value in values.items()]
        try:
            states = (await self._windows.take(windows)).states if windows else []
        except (RedisError, OSError) as error:
            logger.warning("rate limits cannot be read: %s", error)
            return None
        return {
            UNITS[measure]: LeftOfLimit(value, state.remaining, state.reset_s)
            for (measure, value), state in zip(values.items(), states, strict=True)
        }

    async def settle(self, corrections: Sequence[Correction]) -> bool:
        """Apply corrections; False if Redis is unavailable: what was taken then counts until it leaves the windows."""
        try:
            async with timeout_of_others(TIMEOUT_S):
                await self._windows.settle(corrections)
        except (RedisError, OSError) as error:
            logger.warning("rate limits cannot be corrected: %s", error or type(error).__name__)
            return False
        return True


def _window(rule: Rule, tokens: TokenEstimate, *, of_batch: bool) -> Window:
    amount, limit = 1 if rule.measure is Measure.REQUESTS else tokens.total, rule.value
    if of_batch:
        # A line is never refused: it waits until it has the window to itself.
        limit = max(1, int(limit * (1 - KEPT_FROM_BATCHES)))
        amount = min(amount, limit)
    elif not tokens.bounded and rule.measure is Measure.TOKENS and tokens.prompt <= limit:
        amount = min(amount, limit)  # the length of the output is only assumed
    return Window(rule.scope.window_key(rule.measure), amount, limit, rule.soft and not of_batch)


def _report(rules: Sequence[Rule], outcome: Outcome) -> None:
    """Note the tightest limits for the response's headers: those of which the smallest part is left."""
    if (status := RATE_LIMIT_STATUS.get()) is None:
        return
    for rule, state in zip(rules, outcome.states, strict=True):
        left = LeftOfLimit(rule.value, state.remaining, state.reset_s)
        if rule.measure is Measure.REQUESTS:
            status.requests = _tighter(status.requests, left)
        else:
            status.tokens = _tighter(status.tokens, left)


def _tighter(one: LeftOfLimit | None, other: LeftOfLimit) -> LeftOfLimit:
    return other if one is None or other.remaining * one.limit <= one.remaining * other.limit else one


def _message(rule: Rule, window: Window, outcome: Outcome) -> str:
    """Which limit was reached, and of whom."""
    assert outcome.decisive is not None
    if outcome.wait_s is None:
        return _too_large(rule, window.amount, "Request less output.")
    used = max(0, rule.value - outcome.states[outcome.decisive].remaining)
    needed = "" if rule.measure is Measure.REQUESTS else f", requested {window.amount}"
    return f"Rate limit reached: {_named(rule)}. Used {used}{needed}."


def _too_large(rule: Rule, amount: int, advice: str) -> str:
    return f"Request too large: it needs {amount} {UNITS[rule.measure]}, and the limit is {_named(rule)}. {advice}"


def _named(rule: Rule) -> str:
    return f"{rule.value} {UNITS[rule.measure]} a minute of {rule.scope} ({rule.name})"
