"""The budgets that apply to new jobs, and what these reserve in them.

Each API process knows all budgets and prices, which it reads again every few seconds and after its own changes. What is
spent and reserved is only in PostgreSQL: the statement that inserts a job decides whether there is room for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

from api.budgets.worst_case import PricesInForce, Unbounded, Unpriced, WorstCase
from api.context.window import ContextWindow
from shared.config.models.loader import Registry
from shared.domain.budgets import OnExceed, WindowReservation, dollars, window_at
from shared.domain.errors import BudgetExceeded, InvalidRequest
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.postgres.budget_store import Budget, BudgetStore, Rules, format_id
from shared.postgres.budget_windows import BudgetWindowStore, WindowKey
from shared.runtime.periodic import run_periodically
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

# How often budgets and prices are read, and thresholds are checked.
RELOAD_S = 5.0
# How often reservations are looked for that an older version has left, and windows that ended long ago.
RELEASE_S = 60.0
# How long windows are kept after their end, the rows that a statement deletes, and the most statements in a row.
KEPT_S = 35 * 86400.0
PORTION = 500
PORTIONS = 20
PAUSE_S = 0.1
# A model without a price is looked up again before its request is refused, but not more often than this.
MIN_RELOAD_S = 1.0
# How long the thresholds of a window are checked at least after a job was to reserve in it.
WATCH_S = 60.0
# Windows whose ids are remembered.
MAX_WINDOWS = 10_000


class Budgets:
    """The budgets of all projects."""

    def __init__(
        self,
        store: BudgetStore,
        windows: BudgetWindowStore,
        registry: Registry,
        context: ContextWindow,
        metrics: Metrics | None = None,
    ) -> None:
        self._store = store
        self._window_store = windows
        self._worst_case = WorstCase(registry, context)
        self._metrics = metrics
        self._of_projects: dict[int, list[Budget]] = {}
        self._prices = PricesInForce()
        # The time of the database, and of the monotonic clock, when the budgets were read.
        self._read_at: tuple[datetime, float] | None = None
        self._reading: asyncio.Task[Rules] | None = None
        self._windows: dict[WindowKey, int] = {}
        # The windows whose thresholds are checked, and when a job was last to reserve in them, by the monotonic clock.
        self._watched: dict[int, float] = {}
        self._released_at = float("-inf")

    async def run(self) -> None:
        """Keep the budgets up to date, and report what happens to their windows, until cancelled."""
        await run_periodically(self.upkeep, "budgets", interval_s=RELOAD_S, jitter=0.2, immediately=True)

    async def upkeep(self) -> None:
        """Read the budgets again, report thresholds, release what an older version has left reserved, and delete
        windows that ended long ago."""
        if self._read_at is None:
            self._watched |= dict.fromkeys(await self._window_store.reserved_windows(), time.monotonic())
        await self.reload()
        await self._report_alerts()
        if self._of_projects and time.monotonic() - self._released_at >= RELEASE_S:
            self._released_at = time.monotonic()
            await self._release_ended()
            await self._delete_past()

    async def reload(self) -> None:
        """Read the budgets and prices. Concurrent callers share one reading."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._store.rules(), name="budget-rules")
            self._reading.add_done_callback(self._use)
        await asyncio.shield(self._reading)

    def _use(self, reading: asyncio.Task[Rules]) -> None:
        self._reading = None
        if reading.cancelled() or reading.exception() is not None:
            return
        rules = reading.result()
        self._of_projects = {}
        for budget in rules.budgets:
            self._of_projects.setdefault(budget.project_id, []).append(budget)
        self._prices = PricesInForce(rules.prices)
        self._read_at = rules.now, time.monotonic()

    @property
    def now(self) -> datetime:
        """The time of the database, about. It does not depend on this machine's wall clock."""
        if self._read_at is None:
            return datetime.now(UTC)
        at, monotonic = self._read_at
        return at + timedelta(seconds=time.monotonic() - monotonic)

    async def applying(self, owner: Owner) -> Sequence[Budget]:
        """The budgets in which an owner's jobs count."""
        if self._read_at is None:
            await self.reload()
        return [
            budget
            for budget in self._of_projects.get(owner.project_id, ())
            if budget.key_id in (None, owner.key_id)
            and (budget.each_end_user or budget.end_user in (None, owner.end_user))
        ]

    async def plan(self, new: NewJob) -> NewJob:
        """Set what a job reserves when it is inserted. Nothing is reserved yet.

        Raises:
            InvalidRequest: a hard budget applies, and it is not known what the job could cost at most.
            BudgetExceeded: that is more than the whole of a hard budget.
        """
        budgets = await self.applying(new.owner)
        return await self._planned(new, budgets, await self.check(new, budgets)) if budgets else new

    async def check(self, new: NewJob, budgets: Sequence[Budget] | None = None) -> Decimal:
        """Return what a job could cost at most, if a budget applies to it. Raises as `plan`."""
        if budgets is None:
            budgets = await self.applying(new.owner)
        if not budgets:
            return Decimal(0)
        amount = await self._amount(new, is_hard=any(budget.hard for budget in budgets))
        exceeded = [budget for budget in budgets if budget.hard and amount > budget.limit_usd]
        if exceeded:
            budget = min(exceeded, key=lambda one: one.limit_usd)
            raise BudgetExceeded(
                f"This request could cost up to {dollars(amount)}, more than the whole budget"
                f" {format_id(budget.id)} of {dollars(budget.limit_usd)}; lower its max_tokens.",
                scope=budget.scope,
                downgrades=all(one.on_exceed is OnExceed.DOWNGRADE for one in exceeded),
                amount=amount,
                room=budget.limit_usd,
            )
        return amount

    async def most_cost(self, new: NewJob) -> Decimal | None:
        """What a job could cost at most, in dollars; None if it is not known, or the model rejects the prompt."""
        try:
            return await self._worst_case.of(new, self._prices)
        except (Unpriced, Unbounded, InvalidRequest):
            return None

    async def held(self, new: NewJob, error: BudgetExceeded) -> NewJob | None:
        """The job, to be started when the windows that have no room for it have ended, and what it reserves in the next
        ones. None: it would miss a deadline."""
        assert error.retry_after_s is not None
        delay_s = max(new.delay_s or 0.0, error.retry_after_s)
        if any(limit is not None and limit <= delay_s for limit in (new.start_within_s, new.finish_within_s)):
            return None
        amount = max(one.amount for one in new.reservations)
        at = self.now + timedelta(seconds=delay_s)
        return replace(await self._planned(new, await self.applying(new.owner), amount, at), delay_s=delay_s)

    async def _planned(
        self, new: NewJob, budgets: Sequence[Budget], amount: Decimal, at: datetime | None = None
    ) -> NewJob:
        moment = at or self.now
        end_user = new.owner.end_user or ""
        keys = [
            WindowKey(
                budget.id,
                end_user if budget.each_end_user else "",
                window_at(budget.period, ZoneInfo(budget.time_zone), moment),
            )
            for budget in budgets
        ]
        if missing := [key for key in keys if key not in self._windows]:
            if len(self._windows) >= MAX_WINDOWS:
                self._windows.clear()
                missing = keys
            self._windows |= await self._window_store.window_ids(missing)
        ids = {key: self._windows[key] for key in keys if key in self._windows}
        self._watched |= dict.fromkeys(ids.values(), time.monotonic())
        reservations = [WindowReservation(window_id, key.budget_id, amount) for key, window_id in ids.items()]
        return replace(new, reservations=tuple(reservations))

    async def _amount(self, new: NewJob, *, is_hard: bool) -> Decimal:
        """What a job could cost at most; 0 if it is not known and no budget is hard."""
        try:
            try:
                return await self._worst_case.of(new, self._prices)
            except Unpriced:
                if not is_hard or (self._read_at is not None and time.monotonic() - self._read_at[1] < MIN_RELOAD_S):
                    raise
                await self.reload()  # its price may be new
                return await self._worst_case.of(new, self._prices)
        except Unpriced as error:
            if not is_hard:
                return Decimal(0)
            raise InvalidRequest(
                f"model: a hard budget applies to this request, and the model `{error.model}` has no price for input"
                " and output. An operator can add `price` to its entry in models.yaml, or make the budget soft",
                param="model",
            ) from None
        except Unbounded as error:
            if not is_hard:
                return Decimal(0)
            raise InvalidRequest(
                f"max_tokens: a hard budget applies to this request, and the model `{error.model}` does not limit the"
                " output of requests without max_tokens. Set it",
                param="max_tokens",
            ) from None

    async def _report_alerts(self) -> None:
        if not self._watched:
            return
        windows = list(self._watched)
        busy = await self._window_store.busy(windows)
        for alert in await self._window_store.take_alerts(windows):
            budget = alert.budget
            for share in alert.thresholds:
                logger.warning(
                    "budget=%s project=%s scope=%s end_user=%s reached %s %% of %s per %s: %s are spent",
                    format_id(budget.id), budget.project, budget.scope.value, alert.end_user or "-", f"{share * 100:f}",
                    dollars(budget.limit_usd), budget.period.value, dollars(alert.spent),
                )  # fmt: skip
                if self._metrics is not None:
                    level = "limit" if share >= 1 else "threshold"
                    self._metrics.budget_alerts.labels(budget.scope.value, level).inc()
        # A job is inserted some time after it was planned.
        since = time.monotonic() - WATCH_S
        self._watched = {one: at for one, at in self._watched.items() if one in busy or at > since}

    async def _delete_past(self) -> None:
        for _ in range(PORTIONS):
            if await self._window_store.delete_past(KEPT_S, PORTION) < PORTION:
                break
            await asyncio.sleep(PAUSE_S)

    async def _release_ended(self) -> None:
        if released := await self._window_store.release_ended():
            if self._metrics is not None:
                self._metrics.budget_reservations_released.inc(released)
            logger.warning("released %d reservations of budgets of jobs that had ended", released)
