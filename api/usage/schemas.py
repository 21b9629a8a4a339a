"""Reports of usage and statements as JSON."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


def _absent(description: str) -> Any:
    return Field(None, description=description, exclude_if=lambda value: value is None)


class UsageSums(BaseModel):
    """Sums of usage. Amounts are in US dollars."""

    requests: int = Field(description="Jobs that ended, without those that never ran.")
    cached_requests: int = Field(description="Those that got the answer of another job, so that no model ran.")
    attempts: int = Field(description="Executions by workers.")
    input_tokens: int = Field(description="With the following two.")
    cached_input_tokens: int = Field(description="Input tokens that were in the model's prompt cache.")
    cache_write_tokens: int = Field(description="Input tokens that the provider has stored in its cache.")
    output_tokens: int = Field(description="With `reasoning_tokens`.")
    reasoning_tokens: int
    total_tokens: int
    cached_input_share: float | None = Field(description="From 0 to 1; null without input tokens.")
    cached_request_share: float | None = Field(description="From 0 to 1; null without requests.")
    cost: float | None = Field(
        description="What all attempts have cost the operator. Null for keys without the scope `admin`, and if nothing"
        " has a price."
    )
    charge: float | None = Field(description="What is charged for: the tokens that were delivered, once.")
    saved: float | None = Field(
        description="What the answers of other jobs would have been charged if a model had run. Null if a part has no"
        " price."
    )
    unpriced: int = Field(description="Attempts without a price: the amounts do not include them.")


class UsageItem(UsageSums):
    """The usage of one group. It has the members that the report is grouped by."""

    day: date | None = _absent("The day in `time_zone`.")
    month: str | None = _absent("The month in `time_zone`, such as `2026-11`.")
    project: str | None = _absent("The project's name.")
    key: str | None = _absent("The id of the key.")
    user: str | None = Field(None, description="The end user; null for requests that named none.")
    model: str | None = _absent("The model that ran.")
    engine: str | None = Field(
        None, description="The engine of that model, such as `vllm`; null for usage of which it is not known."
    )
    requested_model: str | None = _absent("The model or route that the request named.")
    kind: str | None = _absent("`generate`, or the purpose of jobs that the server submitted itself.")
    service_tier: str | None = _absent("The service tier in which the provider has served the request.")
    batch: bool | None = _absent("Whether the jobs are lines of batches.")


_SUMS: dict[str, Any] = {
    "requests": 120,
    "cached_requests": 30,
    "attempts": 92,
    "input_tokens": 90000,
    "cached_input_tokens": 45000,
    "cache_write_tokens": 0,
    "output_tokens": 18000,
    "reasoning_tokens": 0,
    "total_tokens": 108000,
    "cached_input_share": 0.5,
    "cached_request_share": 0.25,
    "cost": 0.0193,
    "charge": 0.0189,
    "saved": 0.0061,
    "unpriced": 0,
}


class UsageReport(BaseModel):
    """Usage in a time, by groups."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "usage",
                    "start": "2026-11-01",
                    "end": "2026-12-01",
                    "time_zone": "Europe/Berlin",
                    "group_by": ["day", "user"],
                    "currency": "usd",
                    "data": [{"day": "2026-11-01", "user": "user-17", **_SUMS}],
                    "has_more": False,
                    "next_page": None,
                }
            ]
        }
    )

    object: Literal["usage"] = "usage"
    start: date = Field(description="The first day.")
    end: date = Field(description="The day after the last.")
    time_zone: str
    group_by: list[str]
    currency: Literal["usd"] = "usd"
    data: list[UsageItem] = Field(description="In the order of the groups. Groups without usage are left out.")
    has_more: bool
    next_page: str | None = Field(description="`page` of the request for the following items.")


class StatementLine(UsageSums):
    """What one model was used for in a service tier, by single requests or by batches."""

    model: str
    service_tier: str
    batch: bool


class UsageStatement(BaseModel):
    """What a project has used in a month."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "usage.statement",
                    "project": "shop",
                    "month": "2026-11",
                    "time_zone": "Europe/Berlin",
                    "start": "2026-10-31T23:00:00Z",
                    "end": "2026-11-30T23:00:00Z",
                    "complete": True,
                    "currency": "usd",
                    "total": _SUMS,
                    "lines": [{"model": "smollm2", "service_tier": "default", "batch": False, **_SUMS}],
                }
            ]
        }
    )

    object: Literal["usage.statement"] = "usage.statement"
    project: str
    month: str
    time_zone: str
    start: datetime
    end: datetime
    complete: bool = Field(
        description="The month is over, and all that the project has used in it is in the statement. Only corrections"
        " of prices can change it then."
    )
    currency: Literal["usd"] = "usd"
    total: UsageSums
    lines: list[StatementLine]
