"""`/console/usage`: what was used, what it cost, and what caches saved."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from api.console.actions import redirect
from api.console.key_names import KeyNamesStore
from api.console.keys.store import KeyPagesStore
from api.console.navigation import address, asks_for_part
from api.console.page import Page
from api.console.templates import fragment_response, page_response
from api.console.usage.periods import DEFAULT_RANGE, RANGES, RangeName, buckets_until
from api.console.usage.savings import savings_lines
from api.console.usage.store import TopUsageStore
from api.console.usage.view import Table, build_view, line_of
from api.console.viewer import CurrentViewer, Viewer
from api.http.dependencies import resource
from api.keys.store import format_id
from api.savings.service import SavingsService
from api.usage.periods import zone_of
from api.usage.report import Report
from api.usage.service import UsageService
from api.usage.store import Dimension, UsageFilters, UsageSelection
from shared.domain.errors import HeadraceError
from shared.runtime.offload import off_loop

# Rows of a table.
LONGEST = 20
SUGGESTED_PROJECTS = 100
MAX_NAME = 1000
# About the size of a row of the file.
ROW_BYTES = 200
DEFAULT_ZONE = "UTC"
NO_USER = "no end user"
# Days of a report on savings.
DAYS: dict[RangeName, int] = {"24h": 1, "7d": 7, "30d": 30, "90d": 90}

Usage = Annotated[UsageService, Depends(resource(UsageService))]
Top = Annotated[TopUsageStore, Depends(resource(TopUsageStore))]
Names = Annotated[KeyNamesStore, Depends(resource(KeyNamesStore))]
Projects = Annotated[KeyPagesStore, Depends(resource(KeyPagesStore))]
Savings = Annotated[SavingsService, Depends(resource(SavingsService))]
Range = Annotated[RangeName, Query(alias="range")]
Name = Annotated[str, Query(max_length=MAX_NAME)]

router = APIRouter()


@dataclass(frozen=True, slots=True)
class Conditions:
    """Whose usage is shown, as the address of the page has it."""

    range: RangeName
    project: str
    model: str
    user: str
    zone: str

    def address(self, path: str = "usage", **changes: str) -> str:
        """The address of the page, or of its file, with other conditions."""
        values = {"range": self.range, "project": self.project, "model": self.model, "user": self.user}
        values |= {"zone": "" if self.zone == DEFAULT_ZONE else self.zone, **changes}
        if values["range"] == DEFAULT_RANGE:
            values["range"] = ""
        return address(path, **values)

    @property
    def is_narrowed(self) -> bool:
        """Whether only a part of the usage is shown."""
        return bool(self.project or self.model or self.user)


async def read_conditions(
    range_name: Range = DEFAULT_RANGE, project: Name = "", model: Name = "", user: Name = "", zone: Name = ""
) -> Conditions:
    """The conditions of a request."""
    return Conditions(range_name, project.strip(), model.strip(), user.strip(), zone.strip() or DEFAULT_ZONE)


CurrentConditions = Annotated[Conditions, Depends(read_conditions)]


@router.get("")
async def usage_page(
    request: Request,
    viewer: CurrentViewer,
    conditions: CurrentConditions,
    usage: Usage,
    top: Top,
    names: Names,
    projects: Projects,
) -> Response:
    """The page."""
    values: dict[str, Any] = {"view": None, "problem": None}
    try:
        buckets = buckets_until(datetime.now(UTC), conditions.range, zone_of(conditions.zone))
        filters = await _filters(usage, viewer, conditions)
    except HeadraceError as error:
        values["problem"] = error.message
    else:
        selection = UsageSelection(buckets.periods, filters, (Dimension.MODEL,), by_period=True)
        report = await usage.report(selection)
        dimensions = [Dimension.USER, Dimension.KEY]
        if viewer.is_operator and not conditions.project:
            dimensions.insert(0, Dimension.PROJECT)
        selections = [UsageSelection(buckets.periods, filters, (dimension,)) for dimension in dimensions]
        tables = [_models(report), *[await _table(one, top, names) for one in selections]]
        values["view"] = build_view(report.rows, report.total(), buckets, tables, is_operator=viewer.is_operator)
    return page_response(
        request.scope,
        "usage/usage.html",
        422 if values["problem"] else 200,
        conditions=conditions,
        ranges=RANGES,
        project_names=await projects.project_names(SUGGESTED_PROJECTS) if viewer.is_operator else [],
        **values,
    )


@router.get("/export")
async def export(viewer: CurrentViewer, conditions: CurrentConditions, usage: Usage) -> Response:
    """The same usage as CSV: by day (or hour), project, end user, model and key.

    Raises:
        InvalidRequest: there are too many rows for one file.
    """
    buckets = buckets_until(datetime.now(UTC), conditions.range, zone_of(conditions.zone))
    groups = (Dimension.PROJECT, Dimension.USER, Dimension.MODEL, Dimension.KEY)
    filters = await _filters(usage, viewer, conditions)
    selection = UsageSelection(buckets.periods, filters, groups, by_period=True)
    report = await usage.report(selection, RANGES[conditions.range].bucket, reader=viewer.principal)
    content = await off_loop(ROW_BYTES * len(report.rows), report.csv)
    headers = {"Content-Disposition": f'attachment; filename="usage-{conditions.range}.csv"'}
    return Response(content, headers=headers, media_type="text/csv; charset=utf-8")


@router.get("/savings")
async def savings_part(
    request: Request, viewer: CurrentViewer, conditions: CurrentConditions, usage: Usage, savings: Savings
) -> Response:
    """What routes and caches have saved in the project of the conditions, or else of the viewer's key. It is read from
    the rows of jobs, so the page does not wait for it."""
    if not asks_for_part(request.scope):
        return redirect(request, conditions.address())
    filters = await usage.filters(viewer.principal, projects=[conditions.project] if conditions.project else ())
    (project_id,) = filters.project_ids or (viewer.principal.project_id,)
    _, _, found = await savings.report(project_id, DAYS[conditions.range])
    return fragment_response("usage/savings.html", lines=savings_lines(found), text=RANGES[conditions.range].text)


async def _filters(usage: UsageService, viewer: Viewer, conditions: Conditions) -> UsageFilters:
    return await usage.filters(
        viewer.principal,
        projects=[conditions.project] if conditions.project else (),
        users=[conditions.user] if conditions.user else (),
        models=[conditions.model] if conditions.model else (),
    )


def _models(report: Report) -> Table:
    """The table of models, from the rows of the chart."""
    by_model: dict[str, list[Any]] = {}
    for row in report.rows:
        by_model.setdefault(row.model, []).append(row)
    lines = [line_of(Report(report.selection, rows, {}).total(), model, model) for model, rows in by_model.items()]
    lines.sort(key=lambda line: (-(line.charge or 0), -line.requests, line.name))
    return Table("Models", "Model", lines, "model")


async def _table(selection: UsageSelection, top: TopUsageStore, names: KeyNamesStore) -> Table:
    """The table of the projects, end users or keys that used most."""
    (dimension,) = selection.group_by
    rows = await top.top(selection, LONGEST + 1)
    shown, is_cut = rows[:LONGEST], len(rows) > LONGEST
    if dimension is Dimension.KEY:
        keys = await names.names(row.key_id for row in shown)
        named = [(row, f"{keys[row.key_id].key} ({format_id(row.key_id)})") for row in shown]
        return Table("Keys", "Key", [line_of(row, name) for row, name in named], is_cut=is_cut)
    if dimension is Dimension.USER:
        lines = [line_of(row, row.end_user or NO_USER, row.end_user) for row in shown]
        return Table("End users", "End user", lines, "user", is_cut)
    projects = await top.project_names(row.project_id for row in shown)
    found = [(row, projects.get(row.project_id)) for row in shown]
    lines = [line_of(row, name or f"project_{row.project_id}", name or "") for row, name in found]
    return Table("Projects", "Project", lines, "project", is_cut)


PAGE = Page(path="usage", title="Usage", router=router, key="u", group="Insight")
