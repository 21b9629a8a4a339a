"""`/v1/quality`: how good the answers are, by day, project, model and route."""

from __future__ import annotations

from datetime import date
from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from api.http.dependencies import resource
from api.http.errors import ErrorResponse
from api.http.large_json import JsonBody, json_response
from api.http.openapi import ERRORS
from api.http.pagination import NextPage, next_page, offset_of
from api.http.query_parameters import check_names
from api.keys.auth import AnyPrincipal
from api.quality.schemas import QualityReport, classifier_view, item_members
from api.quality.service import QualityService
from api.quality.store import Dimension, QualitySelection
from api.usage.dependencies import EndDay, TimeZone, several
from api.usage.periods import Periods, days_of, zone_of
from shared.domain.database_text import storable

DEFAULT_DAYS = 7
MAX_LIMIT = 500
# About the bytes of an item as JSON.
ITEM_BYTES = 800

router = APIRouter(prefix="/v1/quality", tags=["quality"])

CurrentQuality = Annotated[QualityService, Depends(resource(QualityService))]


class GroupBy(StrEnum):
    """What a report can be grouped by."""

    DAY = "day"
    PROJECT = "project"
    MODEL = "model"
    ROUTE = "route"


@router.get(
    "",
    response_model=QualityReport,
    responses={
        **ERRORS,
        403: {"model": ErrorResponse, "description": "Other projects need a key with the scope `admin`."},
    },
    dependencies=[Depends(check_names)],
)
async def get_quality(
    principal: AnyPrincipal,
    quality: CurrentQuality,
    start: Annotated[date | None, Query(description="The first day; by default, 7 days are reported.")] = None,
    end: EndDay = None,
    time_zone: TimeZone = "UTC",
    group_by: Annotated[list[GroupBy] | None, several("What the rates are made by; by default the model.")] = None,
    project: Annotated[list[str] | None, several("Only answers to this project.")] = None,
    model: Annotated[list[str] | None, several("Only answers of this model.")] = None,
    route: Annotated[list[str] | None, several("Only answers to requests that named this model or route.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 100,
    page: NextPage = None,
) -> Response:
    """Get rates of thumbs up, refusals and errors, and the scores of judges, each with its number of observations and
    a 95 % interval: of the key's project, or of all projects if it has the scope `admin`.

    Refusals and errors are those in the request log, so they are kept as long as that is. Requests of the log level
    `none` are not in it.
    """
    zone = zone_of(time_zone)
    first, after = days_of(start, end, zone, DEFAULT_DAYS)
    groups = list(dict.fromkeys(group_by if group_by is not None else [GroupBy.MODEL]))
    by_day = GroupBy.DAY in groups
    selection = QualitySelection(
        Periods.days(first, after, zone) if by_day else Periods.whole(first, after, zone),
        tuple(Dimension(group.value) for group in groups if group is not GroupBy.DAY),
        by_day=by_day,
        project_ids=await quality.project_ids(principal, project or ()),
        models=set(map(storable, model)) if model else None,
        routes=set(map(storable, route)) if route else None,
    )
    offset = offset_of(page)
    items, has_more = await quality.page(selection, limit=limit, offset=offset)
    # As in the items: the day first.
    names = [group.value for group in sorted(groups, key=lambda group: group is not GroupBy.DAY)]
    head = {"object": "quality", "start": str(first), "end": str(after), "time_zone": time_zone, "group_by": names}
    tail = {
        "refusal_classifier": classifier_view(),
        "has_more": has_more,
        "next_page": next_page(offset + limit, has_more=has_more),
    }
    return await json_response(
        JsonBody(
            lambda: {**head, "data": [item_members(item, names) for item in items], **tail}, ITEM_BYTES * len(items)
        )
    )
