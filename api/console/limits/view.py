"""What the page of limits shows. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from api.console.filters import number
from api.console.limits.store import BudgetState, RateLimit
from api.console.overview.view import Badge

EACH_USER = "*"
# From this share on, a budget is nearly used up.
NEAR = Decimal("0.8")
_ACTIONS = {
    "reject": "requests are refused",
    "hold": "background jobs wait",
    "downgrade": "routes choose cheaper models",
}


@dataclass(frozen=True, slots=True)
class BudgetLine:
    """A budget in its current window. `left` is never negative; `share` is what is spent and reserved of the limit."""

    scope: str
    project: str
    period: str
    time_zone: str
    limit: Decimal
    spent: Decimal
    reserved: Decimal
    left: Decimal
    share: float
    state: Badge
    then: str
    ends_at: datetime | None
    is_used: bool


@dataclass(frozen=True, slots=True)
class RateLine:
    """A rate limit. `values`: what it limits, in words, with the value of each."""

    scope: str
    project: str | None
    model: str | None
    values: Sequence[tuple[str, str]]
    mode: str


def budget_line(budget: BudgetState) -> BudgetLine:
    """A budget as it is shown."""
    used = budget.spent + budget.reserved
    share = used / budget.limit
    return BudgetLine(
        scope=_scope(budget.key, budget.window_user or budget.end_user, is_each=not budget.window_user),
        project=budget.project,
        period="in total" if budget.period == "total" else f"a {budget.period}",
        time_zone=budget.time_zone,
        limit=budget.limit,
        spent=budget.spent,
        reserved=budget.reserved,
        left=max(Decimal(0), budget.limit - used),
        share=float(min(share, Decimal(1))),
        state=_state(share),
        then=_ACTIONS.get(budget.on_exceed, budget.on_exceed) if budget.hard else "a warning only",
        ends_at=budget.ends_at,
        is_used=used > 0,
    )


def rate_line(limit: RateLimit) -> RateLine:
    """A rate limit as it is shown."""
    values = (
        ("requests a minute", limit.requests_per_minute),
        ("tokens a minute", limit.tokens_per_minute),
        ("running jobs", limit.concurrent_jobs),
        ("queued jobs", limit.queued_jobs),
        ("open streams", limit.open_streams),
    )
    return RateLine(
        scope=_scope(limit.key, limit.end_user, is_each=True),
        project=limit.project,
        model=limit.model,
        values=[(text, number(value)) for text, value in values if value is not None],
        mode="wait in the queue" if limit.mode == "soft" else "are refused",
    )


def _scope(key: str | None, end_user: str | None, *, is_each: bool) -> str:
    """Whose requests count, apart from the project."""
    parts = [f"key {key}"] if key is not None else []
    if end_user is not None:
        parts.append("each end user" if is_each and end_user == EACH_USER else f"end user {end_user}")
    return ", ".join(parts) or "all requests"


def _state(share: Decimal) -> Badge:
    if share >= 1:
        return Badge("used up", "bad")
    return Badge("nearly used up", "near") if share >= NEAR else Badge("open", "good")
