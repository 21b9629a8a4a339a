"""`/console/quality`: scores with their intervals, a comparison of two models, and the labelling of answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from api.console.actions import read_form, redirect
from api.console.page import Page
from api.console.quality.view import ToLabelView, comparison_view, group_line, report_view
from api.console.templates import page_response
from api.console.viewer import CurrentViewer, Viewer
from api.evals.dependencies import CurrentEvals, labelled_project, labeller_id
from api.evals.rubrics import MAX_NAME
from api.evals.service import EvalService
from api.http.dependencies import resource
from api.keys.principal import Scope
from api.quality.routes import CurrentQuality, GroupBy
from api.quality.store import Dimension, QualitySelection
from api.requests.service import LoggedRequests
from api.usage.periods import Periods
from shared.domain.errors import InvalidRequest, NotFound
from shared.domain.field_types import MAX_MODEL_NAME

DAYS = (7, 30, 90)
# A report of a long time reads all requests of that time.
DEFAULT_DAYS = 7
# Rows of the table of rates.
MOST = 100

Requests = Annotated[LoggedRequests, Depends(resource(LoggedRequests))]
Name = Annotated[str, Query(max_length=MAX_NAME)]
ModelName = Annotated[str, Query(max_length=MAX_MODEL_NAME)]
Days = Annotated[int, Query(ge=1, le=365)]

router = APIRouter()


@router.get("")
async def quality_page(
    request: Request,
    viewer: CurrentViewer,
    evals: CurrentEvals,
    quality: CurrentQuality,
    rubric: Name = "",
    days: Days = DEFAULT_DAYS,
    by: GroupBy = GroupBy.MODEL,
    a: ModelName = "",
    b: ModelName = "",
) -> Response:
    """Rates and scores with their intervals, and a comparison of two models if they are named."""
    states = await evals.rubrics()
    names = [state.rubric.name for state in states]
    chosen = rubric if rubric in names else names[0] if names else ""
    items, is_cut = await quality.page(_selection(viewer, days, by), limit=MOST)
    values: dict[str, Any] = {"report": None, "comparison": None, "problem": None}
    if chosen:
        values["report"] = report_view(
            await evals.report(chosen, days, viewer.project_id),
            next(state for state in states if state.rubric.name == chosen),
            is_operator=viewer.is_operator,
        )
    if a and b:
        try:
            found = await evals.compare(a, b, rubric or None, days, project_id=viewer.project_id)
            values["comparison"] = comparison_view(found)
        except NotFound as error:
            values["problem"] = error.message
    return page_response(
        request.scope,
        "quality/quality.html",
        names=names,
        rubric=chosen,
        days=days,
        choices=DAYS,
        by=by,
        groupings=[one for one in GroupBy if viewer.is_operator or one is not GroupBy.PROJECT],
        lines=[group_line(item) for item in items],
        is_cut=is_cut,
        a=a,
        b=b,
        **values,
    )


def _selection(viewer: Viewer, days: int, by: GroupBy) -> QualitySelection:
    """What the table of rates shows: days are those of UTC."""
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    first, zone = tomorrow - timedelta(days=days), ZoneInfo("UTC")
    by_day = by is GroupBy.DAY
    return QualitySelection(
        Periods.days(first, tomorrow, zone) if by_day else Periods.whole(first, tomorrow, zone),
        () if by_day else (Dimension(by.value),),
        by_day=by_day,
        project_ids=None if viewer.project_id is None else {viewer.project_id},
    )


@router.get("/labels")
async def labels_page(
    request: Request,
    viewer: CurrentViewer,
    evals: CurrentEvals,
    requests: Requests,
    rubric: Name = "",
    labelled: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> Response:
    """An answer to label, with the question and a button for each score."""
    names = [state.rubric.name for state in await evals.rubrics()]
    chosen = rubric if rubric in names else names[0] if names else ""
    may_read = viewer.principal.may(Scope.LOGS)
    item = await _next(evals, viewer, requests, chosen) if chosen and may_read else None
    return page_response(
        request.scope,
        "quality/labels.html",
        names=names,
        rubric=chosen,
        may_read=may_read,
        item=item,
        labelled=labelled,
        problem=None,
    )


@router.post("/labels")
async def label(request: Request, viewer: CurrentViewer, evals: CurrentEvals) -> Response:
    """Store what the viewer says of an answer, and lead to the next one."""
    viewer.principal.require(Scope.LOGS)
    form = await read_form(request)
    rubric, count = form["rubric"], int(form["labelled"]) if form["labelled"].isdecimal() else 0
    if not form["item"] or form.errors:
        raise InvalidRequest("The form is incomplete: reload the page.")
    labeller, project_id = labeller_id(viewer.principal), labelled_project(viewer.principal)
    await evals.label(rubric, form["item"], labeller, form["score"], project_id)
    return redirect(request, f"quality/labels?{urlencode({'rubric': rubric, 'labelled': count + 1})}")


async def _next(evals: EvalService, viewer: Viewer, requests: LoggedRequests, rubric: str) -> ToLabelView | None:
    found = await evals.next_to_label(rubric, viewer.principal, requests)
    return None if found is None else ToLabelView.of(found)


PAGE = Page(path="quality", title="Quality", router=router, key="e", group="Insight")
