"""What the page of limits shows. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from api.console.filters import duration, number
from api.console.limits.store import BudgetState
from api.console.overview.view import Badge
from api.http.rate_limits import LeftOfLimit
from api.limits.rules import EACH_USER, UNITS, Measure, Mode
from api.limits.store import StoredLimit

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


class RateValue(NamedTuple):
    """A value of a rate limit, and what is left of it, if that is known."""

    value: str
    text: str
    left: str = ""


@dataclass(frozen=True, slots=True)
class RateLine:
    """A rate limit."""

    scope: str
    project: str | None
    model: str | None
    values: Sequence[RateValue]
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


_MEASURES = {
    Measure.REQUESTS: "requests a minute",
    Measure.TOKENS: "tokens a minute",
    Measure.CONCURRENT_JOBS: "running jobs",
    Measure.QUEUED_JOBS: "queued jobs",
    Measure.OPEN_STREAMS: "open streams",
}


def rate_line(limit: StoredLimit, key: str | None, left: Mapping[str, LeftOfLimit] | None) -> RateLine:
    """A rate limit as it is shown. `key`: the name of its key. `left`: of its rates, if that is known."""
    values = []
    for measure, text in _MEASURES.items():
        if (value := getattr(limit, measure)) is not None:
            found = (left or {}).get(UNITS.get(measure, ""))
            values.append(RateValue(number(value), text, _left(found) if found is not None else ""))
    return RateLine(
        scope=_scope(key, limit.end_user, is_each=True),
        project=limit.project,
        model=limit.model,
        values=values,
        mode="wait in the queue" if limit.mode == Mode.SOFT else "are refused",
    )


def _left(left: LeftOfLimit) -> str:
    if left.remaining >= left.limit:
        return "all left"
    return f"{number(left.remaining)} left, all again in {duration(left.reset_s)}"


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
