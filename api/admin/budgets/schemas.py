"""Budgets as JSON."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, model_validator

from api.http.pagination import PageView
from api.keys.changes import MAX_NAME, NAME
from shared.domain.budgets import EACH_END_USER, OnExceed, Period, Window
from shared.domain.field_types import contradiction, unicode_text, without_effect
from shared.domain.owner import MAX_END_USER
from shared.postgres.budget_store import Budget, format_id
from shared.postgres.budget_windows import Spending

MAX_THRESHOLDS = 20

# Numbers in JSON; exact in the database.
Dollars = Annotated[Decimal, PlainSerializer(float, return_type=float)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME, pattern=rf"^{NAME}$")]


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # OSError: it is a folder, such as Europe
        raise ValueError(f"unknown time zone {name[:64]!r}; use a name such as Europe/Berlin or UTC") from None
    return name


def _thresholds(shares: list[Decimal]) -> list[Decimal]:
    return sorted(set(shares))


Limit = Annotated[Decimal, Field(gt=0, max_digits=20, decimal_places=9, examples=[100])]
TimeZone = Annotated[str, Field(max_length=64), AfterValidator(_known_zone)]
Share = Annotated[Decimal, Field(gt=0, le=1, max_digits=6), PlainSerializer(float, return_type=float)]
Thresholds = Annotated[list[Share], Field(max_length=MAX_THRESHOLDS), AfterValidator(_thresholds)]
DEFAULT_THRESHOLDS = [Decimal("0.8"), Decimal(1)]


class BudgetCreate(BaseModel):
    """A budget to create: of a project or, of its jobs, of those of a key or an end user."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"project": "shop", "period": "month", "time_zone": "Europe/Berlin", "limit_usd": 100},
                {"project": "shop", "period": "day", "limit_usd": 5, "on_exceed": "downgrade"},
            ]
        },
    )

    project: Name
    key: str | None = Field(None, description="Only jobs of this key count: `key_…`.")
    end_user: Annotated[str, Field(min_length=1, max_length=MAX_END_USER), AfterValidator(unicode_text)] | None = Field(
        None, description=f"Only jobs of this end user count. `{EACH_END_USER}`: each end user has this budget."
    )
    period: Period = Field(description="How long its windows are. They begin at midnight, weeks on Monday.")
    time_zone: TimeZone = Field("UTC", description="In which time zone the windows begin: Europe/Berlin.")
    limit_usd: Limit = Field(description="Dollars in each window.")
    hard: bool = Field(True, description="Jobs without room are not admitted. False: the budget only warns.")
    on_exceed: OnExceed = Field(
        OnExceed.REJECT,
        description="What happens to such jobs: `reject`; `hold`: background jobs wait for the next window; or"
        " `downgrade`: jobs of routes get a cheaper model.",
    )
    alert_at: Thresholds = Field(
        DEFAULT_THRESHOLDS, description="Shares of the limit that are reported when they are spent."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_exceeding(self.period, self.on_exceed, hard=self.hard)
        return self


class BudgetUpdate(BaseModel):
    """Changes of a budget: a JSON Merge Patch (RFC 7396). What is absent remains as it is."""

    is_merge_patch: ClassVar[bool] = True
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"limit_usd": 150}]})

    # The defaults stand for absent fields, which cannot be null; they are never read.
    limit_usd: Limit = Field(default_factory=Decimal, description="Dollars in each window, the current one too.")
    hard: bool = Field(default_factory=bool)
    on_exceed: OnExceed = Field(default_factory=lambda: OnExceed.REJECT)
    alert_at: Thresholds = Field(default_factory=list)

    def changes(self) -> dict[str, Any]:
        """The columns that change."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        if "on_exceed" in given:
            given["on_exceed"] = given["on_exceed"].value
        return given


def check_exceeding(period: Period, on_exceed: OnExceed, *, hard: bool) -> None:
    """Raise the error of an `on_exceed` that has no meaning."""
    if on_exceed is not OnExceed.REJECT and not hard:
        raise without_effect("on_exceed", "with hard=false")
    if on_exceed is OnExceed.HOLD and period is Period.TOTAL:
        raise contradiction("on_exceed", "a total budget has no next window to wait for; use reject or downgrade")


class BudgetView(BaseModel):
    """A budget, and what is left of it in its current window."""

    id: str
    object: Literal["budget"] = "budget"
    project: str
    key: str | None
    end_user: str | None
    period: Period
    time_zone: str
    limit_usd: Dollars
    hard: bool
    on_exceed: OnExceed
    alert_at: list[Share]
    spend_usd: Dollars = Field(description="What ended jobs of the window were charged.")
    reserved_usd: Dollars = Field(description="What open jobs of the window could cost at most.")
    remaining_usd: Dollars | None = Field(
        description="What new jobs may reserve; negative if the limit was lowered. Null for the sum of all end users."
    )
    starts_at: datetime | None = Field(description="When the current window began; null for `total`.")
    resets_at: datetime | None = Field(description="When the next window begins; null for `total`.")
    created_at: datetime

    @classmethod
    def of(cls, budget: Budget, window: Window, spending: Spending, *, is_sum: bool) -> Self:
        """The JSON form. `is_sum`: the spending is that of several windows."""
        remaining = budget.limit_usd - spending.spent - spending.reserved
        return cls(
            id=format_id(budget.id),
            project=budget.project,
            key=None if budget.key_id is None else f"key_{budget.key_id}",
            end_user=budget.end_user,
            period=budget.period,
            time_zone=budget.time_zone,
            limit_usd=budget.limit_usd,
            hard=budget.hard,
            on_exceed=budget.on_exceed,
            alert_at=list(budget.alert_at),
            spend_usd=spending.spent,
            reserved_usd=spending.reserved,
            remaining_usd=None if is_sum else remaining,
            starts_at=None if window.ends_at is None else window.starts_at,
            resets_at=window.ends_at,
            created_at=budget.created_at,
        )


class BudgetList(PageView[BudgetView]):
    """A page of budgets, newest first."""


class BudgetDeleted(BaseModel):
    """A budget that was deleted."""

    id: str
    object: Literal["budget.deleted"] = "budget.deleted"
    deleted: Literal[True] = True
