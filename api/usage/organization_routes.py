"""OpenAI's `/v1/organization/usage/completions` and `/v1/organization/costs`. Their buckets are in UTC."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response

from api.http.large_json import JsonBody, json_response
from api.http.money import dollars
from api.http.pagination import NextPage, next_page, page_number, wrong_page
from api.keys.auth import AnyPrincipal
from api.usage.dependencies import USAGE_ERRORS, CurrentUsage
from api.usage.organization_schemas import CompletionsUsagePage, CostsPage
from api.usage.periods import Periods
from api.usage.report import Report, cache_writes, input_tokens, known, output_tokens
from api.usage.service import UsageService
from api.usage.store import Dimension, UsageFilters, UsageSelection
from shared.domain.errors import InvalidRequest
from shared.runtime.chunked_json import Mapped

# Seconds from 1970 to the end of 9998: dates have their own limits.
LAST_TIME = 253_370_764_800
RESULT_BYTES = 450

router = APIRouter(prefix="/v1/organization", tags=["usage"])


@dataclass(frozen=True, slots=True)
class Width:
    """A width of buckets: its seconds, and how many buckets a page has by default and at most."""

    seconds: int
    default: int
    most: int


WIDTHS = {"1m": Width(60, 60, 1440), "1h": Width(3600, 24, 168), "1d": Width(86400, 7, 31)}
COSTS_WIDTH = Width(86400, 7, 180)

UsageGroup = Literal["project_id", "user_id", "api_key_id", "model", "batch", "service_tier"]
CostsGroup = Literal["project_id", "user_id", "api_key_id", "line_item"]
DIMENSIONS: Mapping[str, Dimension] = {
    "project_id": Dimension.PROJECT,
    "user_id": Dimension.USER,
    "api_key_id": Dimension.KEY,
    "model": Dimension.MODEL,
    "line_item": Dimension.MODEL,
    "batch": Dimension.BATCH,
    "service_tier": Dimension.SERVICE_TIER,
}

UnixTime = Annotated[int, Query(ge=0, le=LAST_TIME, description="Unix seconds; rounded down to the start of a bucket.")]
EndTime = Annotated[
    int | None,
    Query(ge=0, le=LAST_TIME, description="Unix seconds; rounded up to the end of a bucket. By default now."),
]
Limit = Annotated[int | None, Query(ge=1, description="The number of buckets.")]


# OpenAI's SDKs send `group_by[]=model`; its documentation also has `group_by=model`.
def _brackets(name: str, description: str) -> Any:
    return Query(alias=f"{name}[]", description=f"{description} Repeat it for several. The brackets are optional.")


def _plain(name: str) -> Any:
    return Query(alias=name, include_in_schema=False)


@router.get("/usage/completions", response_model=CompletionsUsagePage, responses=USAGE_ERRORS)
async def completions_usage(
    principal: AnyPrincipal,
    usage: CurrentUsage,
    start_time: UnixTime,
    end_time: EndTime = None,
    bucket_width: Literal["1m", "1h", "1d"] = "1d",
    group_by: Annotated[list[UsageGroup] | None, _brackets("group_by", "What to group by.")] = None,
    project_ids: Annotated[list[str] | None, _brackets("project_ids", "Only these projects, by name.")] = None,
    user_ids: Annotated[list[str] | None, _brackets("user_ids", "Only these end users.")] = None,
    api_key_ids: Annotated[list[str] | None, _brackets("api_key_ids", "Only these keys.")] = None,
    models: Annotated[list[str] | None, _brackets("models", "Only these models.")] = None,
    batch: Annotated[bool | None, Query(description="Only lines of batches, or none of them.")] = None,
    limit: Limit = None,
    page: NextPage = None,
    group_by_: Annotated[list[UsageGroup] | None, _plain("group_by")] = None,
    project_ids_: Annotated[list[str] | None, _plain("project_ids")] = None,
    user_ids_: Annotated[list[str] | None, _plain("user_ids")] = None,
    api_key_ids_: Annotated[list[str] | None, _plain("api_key_ids")] = None,
    models_: Annotated[list[str] | None, _plain("models")] = None,
) -> Response:
    """Get the usage of models in buckets of time, of the key's project, or of all if it has the scope `admin`."""
    filters = await usage.filters(
        principal,
        projects=_both(project_ids, project_ids_),
        keys=_both(api_key_ids, api_key_ids_),
        users=_both(user_ids, user_ids_),
        models=_both(models, models_),
        batch=batch,
        names=("project_ids", "api_key_ids"),
    )
    window = _window(start_time, end_time, WIDTHS[bucket_width], limit, page)
    groups = _both(group_by, group_by_)
    return await _page(usage, window, filters, groups, _usage_result, from_ledger=bucket_width == "1m")


@router.get("/costs", response_model=CostsPage, responses=USAGE_ERRORS)
async def costs(
    principal: AnyPrincipal,
    usage: CurrentUsage,
    start_time: UnixTime,
    end_time: EndTime = None,
    bucket_width: Literal["1d"] = "1d",
    group_by: Annotated[list[CostsGroup] | None, _brackets("group_by", "What to group by.")] = None,
    project_ids: Annotated[list[str] | None, _brackets("project_ids", "Only these projects, by name.")] = None,
    api_key_ids: Annotated[list[str] | None, _brackets("api_key_ids", "Only these keys.")] = None,
    line_items: Annotated[list[str] | None, _brackets("line_items", "Only these models.")] = None,
    limit: Limit = None,
    page: NextPage = None,
    group_by_: Annotated[list[CostsGroup] | None, _plain("group_by")] = None,
    project_ids_: Annotated[list[str] | None, _plain("project_ids")] = None,
    api_key_ids_: Annotated[list[str] | None, _plain("api_key_ids")] = None,
    line_items_: Annotated[list[str] | None, _plain("line_items")] = None,
) -> Response:
    """Get what was charged by day, of the key's project, or of all if it has the scope `admin`."""
    filters = await usage.filters(
        principal,
        projects=_both(project_ids, project_ids_),
        keys=_both(api_key_ids, api_key_ids_),
        models=_both(line_items, line_items_),
        names=("project_ids", "api_key_ids"),
    )
    window = _window(start_time, end_time, COSTS_WIDTH, limit, page)
    return await _page(usage, window, filters, _both(group_by, group_by_), _costs_result)


@dataclass(frozen=True, slots=True)
class Window:
    """The buckets of a page: the start of the first, their number and width; and whether others follow."""

    start: int
    count: int
    width: Width
    has_more: bool

    @property
    def end(self) -> int:
        return self.start + self.count * self.width.seconds


def _window(start_time: int, end_time: int | None, width: Width, limit: int | None, page: str | None) -> Window:
    """The buckets that a request asks for.

    Raises:
        InvalidRequest: the times, the limit or the page are not possible.
    """
    if limit is not None and limit > width.most:
        raise InvalidRequest(f"limit: must be at most {width.most} for this bucket_width, got {limit}", param="limit")
    start = start_time - start_time % width.seconds
    end = end_time if end_time is not None else max(int(time.time()), start_time + 1)
    if end <= start_time:
        raise InvalidRequest(f"end_time: must be after start_time, which is {start_time}; got {end}", param="end_time")
    end += -end % width.seconds
    if page is not None:
        first = page_number(page)
        if not start <= first < end or first % width.seconds:
            raise wrong_page(page)
        start = first
    left = (end - start) // width.seconds
    count = min(left, limit or width.default)
    return Window(start, count, width, has_more=left > count)


async def _page(
    usage: UsageService,
    window: Window,
    filters: UsageFilters,
    groups: Sequence[str],
    result_of: Callable[[Any, Mapping[str, Any]], dict[str, Any]],
    *,
    from_ledger: bool = False,
) -> Response:
    periods = Periods.of_width(window.start, window.count, window.width.seconds)
    groups = list(dict.fromkeys(groups))
    dimensions = tuple(DIMENSIONS[group] for group in groups)
    report = await usage.report(UsageSelection(periods, filters, dimensions, by_period=True, from_ledger=from_ledger))

    def build() -> dict[str, Any]:
        return {
            "object": "page",
            "data": _buckets(window, report, groups, result_of),
            "has_more": window.has_more,
            "next_page": next_page(window.end, has_more=window.has_more),
        }

    return await json_response(JsonBody(build, RESULT_BYTES * len(report.rows) + 100 * window.count))


def _buckets(
    window: Window,
    report: Report,
    groups: Sequence[str],
    result_of: Callable[[Any, Mapping[str, Any]], dict[str, Any]],
) -> list[dict[str, Any]]:
    """All buckets, also those without usage."""
    rows: list[list[Any]] = [[] for _ in range(window.count)]
    for row in report.rows:
        rows[row.period].append(row)

    def result(row: Any) -> dict[str, Any]:
        return result_of(row, {group: report.value(row, DIMENSIONS[group]) for group in groups})

    width = window.width.seconds
    return [
        {
            "object": "bucket",
            "start_time": window.start + number * width,
            "end_time": window.start + (number + 1) * width,
            "results": Mapped(found, result),
        }
        for number, found in enumerate(rows)
    ]


def _usage_result(row: Any, groups: Mapping[str, Any]) -> dict[str, Any]:
    written = cache_writes(row)
    return {
        "object": "organization.usage.completions.result",
        "input_tokens": input_tokens(row),
        "output_tokens": output_tokens(row),
        "input_cached_tokens": row.input_cache_read,
        "input_uncached_tokens": row.input_fresh,
        "input_cache_write_tokens": written,
        "input_audio_tokens": 0,
        "output_audio_tokens": 0,
        "num_model_requests": row.requests - row.cached_requests,
        "project_id": groups.get("project_id"),
        "user_id": groups.get("user_id"),
        "api_key_id": groups.get("api_key_id"),
        "model": groups.get("model"),
        "batch": groups.get("batch"),
        "service_tier": groups.get("service_tier"),
    }


def _costs_result(row: Any, groups: Mapping[str, Any]) -> dict[str, Any]:
    value = dollars(known(row, "charge"))
    return {
        "object": "organization.costs.result",
        "amount": None if value is None else {"value": value, "currency": "usd"},
        "line_item": groups.get("line_item"),
        "project_id": groups.get("project_id"),
        "user_id": groups.get("user_id"),
        "api_key_id": groups.get("api_key_id"),
    }


def _both(first: Sequence[str] | None, second: Sequence[str] | None) -> list[str]:
    """The values of a parameter, written with and without brackets."""
    return [*(first or ()), *(second or ())]
