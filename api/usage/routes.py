"""`/v1/usage`: what was used, by day, project, key, end user and model, and statements of projects."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from enum import StrEnum
from functools import partial
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, Query, Request, Response

from api.http.large_json import JsonBody, json_response
from api.http.pagination import NextPage, next_page, offset_of
from api.http.parquet import PARQUET, load_pyarrow
from api.http.query_parameters import check_names
from api.keys.auth import AnyPrincipal
from api.usage.dependencies import USAGE_ERRORS, CurrentUsage, EndDay, TimeZone, several
from api.usage.periods import Periods, days_of, month_of, zone_of
from api.usage.report import Report
from api.usage.schemas import UsageReport, UsageStatement
from api.usage.store import Dimension, UsageFilters, UsageSelection
from shared.domain.errors import InvalidRequest
from shared.runtime.offload import off_loop

DEFAULT_DAYS = 30
MAX_LIMIT = 1000
# About the bytes of an item as JSON or CSV.
ITEM_BYTES = 400
_CSV = "text/csv"
_FILES: dict[str, Any] = {
    _CSV: {"schema": {"type": "string"}},
    PARQUET: {"schema": {"type": "string", "format": "binary"}},
}

router = APIRouter(prefix="/v1/usage", tags=["usage"])


class Group(StrEnum):
    """What a report can be grouped by."""

    DAY = "day"
    MONTH = "month"
    PROJECT = "project"
    KEY = "key"
    USER = "user"
    MODEL = "model"
    ENGINE = "engine"
    REQUESTED_MODEL = "requested_model"
    KIND = "kind"
    SERVICE_TIER = "service_tier"
    BATCH = "batch"


PERIODS = {Group.DAY: Periods.days, Group.MONTH: Periods.months}
FormatName = Literal["json", "csv", "parquet"]
Format = Annotated[
    FormatName | None,
    Query(
        description="By default, what `Accept` prefers: `text/csv`, `application/vnd.apache.parquet`, otherwise JSON."
        " Parquet needs pyarrow on the server."
    ),
]

_ACCEPTED: dict[str, FormatName] = {_CSV: "csv", PARQUET: "parquet"}


@router.get(
    "",
    response_model=UsageReport,
    responses={**USAGE_ERRORS, 200: {"model": UsageReport, "content": _FILES}},
    dependencies=[Depends(check_names)],
)
async def get_usage(
    request: Request,
    principal: AnyPrincipal,
    usage: CurrentUsage,
    start: Annotated[date | None, Query(description="The first day; by default, 30 days are reported.")] = None,
    end: EndDay = None,
    time_zone: TimeZone = "UTC",
    group_by: Annotated[list[Group] | None, several("What the sums are made by; by default the day.")] = None,
    project: Annotated[list[str] | None, several("Only usage of this project.")] = None,
    key: Annotated[list[str] | None, several("Only usage with the key of this id.")] = None,
    user: Annotated[list[str] | None, several("Only usage of this end user; empty: of none.")] = None,
    model: Annotated[list[str] | None, several("Only usage of this model.")] = None,
    batch: Annotated[bool | None, Query(description="Only lines of batches, or none of them.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Files have all items.")] = MAX_LIMIT,
    page: NextPage = None,
    format: Format = None,  # noqa: A002
) -> Response:
    """Get sums of usage and of what it cost, of the key's project, or of all projects if it has the scope `admin`."""
    zone = zone_of(time_zone)
    first, after = days_of(start, end, zone, DEFAULT_DAYS)
    groups = list(dict.fromkeys(group_by if group_by is not None else [Group.DAY]))
    filters = await usage.filters(
        principal, projects=project or (), keys=key or (), users=user or (), models=model or (), batch=batch
    )
    selection, period = _selection(groups, first, after, zone, filters)
    wanted = format or _preferred(request)
    if wanted != "json":
        return await _file(await usage.report(selection, period, reader=principal), "usage", wanted)
    offset = offset_of(page)
    report, has_more = await usage.page(selection, period, limit=limit, offset=offset, reader=principal)
    head = {
        "object": "usage",
        "start": str(first),
        "end": str(after),
        "time_zone": time_zone,
        "group_by": report.columns,
        "currency": "usd",
    }
    tail = {"has_more": has_more, "next_page": next_page(offset + limit, has_more=has_more)}
    return await json_response(
        JsonBody(lambda: {**head, "data": report.items(), **tail}, ITEM_BYTES * len(report.rows))
    )


@router.get(
    "/statement",
    response_model=UsageStatement,
    responses={**USAGE_ERRORS, 200: {"model": UsageStatement, "content": _FILES}},
    dependencies=[Depends(check_names)],
)
async def get_statement(
    request: Request,
    principal: AnyPrincipal,
    usage: CurrentUsage,
    month: Annotated[str, Query(description="Such as `2026-11`.")],
    project: Annotated[str | None, Query(description="By default the project of the key.")] = None,
    time_zone: TimeZone = "UTC",
    format: Format = None,  # noqa: A002
) -> Response:
    """Get the statement of a project for a month: what it has used of each model, and the amounts."""
    zone = zone_of(time_zone)
    first, after = month_of(month)
    project_id, name = await usage.own_or_named_project(principal, project)
    periods, filters = Periods.whole(first, after, zone), UsageFilters(project_ids={project_id})
    # Read before the sums, so that a statement which says that it is complete is.
    complete = await usage.is_complete(project_id, periods.end)
    lines = await usage.report(
        UsageSelection(periods, filters, (Dimension.MODEL, Dimension.SERVICE_TIER, Dimension.BATCH)), reader=principal
    )
    wanted = format or _preferred(request)
    if wanted != "json":
        return await _file(lines, f"statement-{month}", wanted)
    return await json_response(JsonBody(partial(_statement, name, month, time_zone, complete, lines), 0))


def _selection(
    groups: Sequence[Group], first: date, end: date, zone: ZoneInfo, filters: UsageFilters
) -> tuple[UsageSelection, str | None]:
    """The selection of a report, and what its periods are called."""
    named = [group for group in groups if group in PERIODS]
    if len(named) > 1:
        raise InvalidRequest("group_by: give one of `day` and `month`", param="group_by")
    dimensions = tuple(Dimension(group.value) for group in groups if group not in PERIODS)
    if not named:
        return UsageSelection(Periods.whole(first, end, zone), filters, dimensions), None
    periods = PERIODS[named[0]](first, end, zone)
    return UsageSelection(periods, filters, dimensions, by_period=True), named[0].value


def _statement(project: str, month: str, time_zone: str, complete: bool, lines: Report) -> dict[str, Any]:
    periods = lines.selection.periods
    return {
        "object": "usage.statement",
        "project": project,
        "month": month,
        "time_zone": time_zone,
        "start": f"{periods.start:%Y-%m-%dT%H:%M:%SZ}",
        "end": f"{periods.end:%Y-%m-%dT%H:%M:%SZ}",
        "complete": complete,
        "currency": "usd",
        "total": lines.json_sums(lines.total()),
        "lines": lines.items(),
    }


def _preferred(request: Request) -> FormatName:
    """The format that a client accepts first."""
    first = request.headers.get("accept", "").split(",")[0]
    return _ACCEPTED.get(first.split(";")[0].strip().lower(), "json")


async def _file(report: Report, name: str, file_format: Literal["csv", "parquet"]) -> Response:
    """A report as a file.

    Raises:
        InvalidRequest: its format needs a package that is not installed.
    """
    size = ITEM_BYTES * len(report.rows)
    if file_format == "csv":
        content, media_type = await off_loop(size, report.csv), f"{_CSV}; charset=utf-8"
    else:
        await load_pyarrow()
        content, media_type = await off_loop(size, report.parquet), PARQUET
    headers = {"Content-Disposition": f'attachment; filename="{name}.{file_format}"'}
    return Response(content, headers=headers, media_type=media_type)
