"""`/console/routing`: what routes and the response cache decided, a try, and the removal of answers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from api.cache.store import CacheStore
from api.console.actions import Form, dialog_response, read_form, redirect
from api.console.keys.store import KeyPagesStore
from api.console.navigation import asks_for_part
from api.console.page import Page
from api.console.routing.store import RoutingStore, parts_of
from api.console.routing.trial import Trial, names_of, try_route
from api.console.routing.view import RoutingView, build_view
from api.console.templates import fragment_response, page_response
from api.console.viewer import CurrentViewer, Viewer
from api.http.dependencies import resource
from api.jobs.dependencies import CurrentAdmission
from api.keys.principal import Scope
from shared.config.durations import seconds_of
from shared.config.models.loader import Registry
from shared.domain.answer_options import MAX_CACHE_TTL_S

RangeName = Literal["1h", "6h", "24h", "7d"]


class Span(NamedTuple):
    """A time range: its length, in words, and the width of its parts, in words."""

    length: timedelta
    text: str
    width: timedelta
    part: str


RANGES: Mapping[RangeName, Span] = {
    "1h": Span(timedelta(hours=1), "hour", timedelta(minutes=1), "minute"),
    "6h": Span(timedelta(hours=6), "6 hours", timedelta(minutes=5), "5 minutes"),
    "24h": Span(timedelta(days=1), "24 hours", timedelta(minutes=30), "half hour"),
    "7d": Span(timedelta(days=7), "7 days", timedelta(hours=3), "3 hours"),
}
DEFAULT_RANGE: RangeName = "24h"
SUGGESTED_PROJECTS = 100

Store = Annotated[RoutingStore, Depends(resource(RoutingStore))]
Cache = Annotated[CacheStore, Depends(resource(CacheStore))]
Projects = Annotated[KeyPagesStore, Depends(resource(KeyPagesStore))]
CurrentRegistry = Annotated[Registry, Depends(resource(Registry))]

router = APIRouter()


@router.get("")
async def routing_page(
    request: Request,
    viewer: CurrentViewer,
    store: Store,
    registry: CurrentRegistry,
    range_name: Annotated[RangeName, Query(alias="range")] = DEFAULT_RANGE,
    purged: Annotated[int | None, Query(ge=0)] = None,
) -> Response:
    """The page."""
    view = await _view(viewer, store, registry, range_name)
    return _page(request, registry, view, range_name, Trial(Form()), purged=purged)


@router.post("/try")
async def try_it(
    request: Request, viewer: CurrentViewer, store: Store, registry: CurrentRegistry, admission: CurrentAdmission
) -> Response:
    """Which model would run a request: the part of the page with the answer, or without scripts the whole page."""
    viewer.principal.require(Scope.INFERENCE)  # as `POST /v1/route`
    trial = await try_route(
        await read_form(request), viewer.principal, admission, registry, is_operator=viewer.is_operator
    )
    if asks_for_part(request.scope):
        return fragment_response("routing/trial.html", trial=trial)
    view = await _view(viewer, store, registry, DEFAULT_RANGE)
    return _page(request, registry, view, DEFAULT_RANGE, trial, status=422 if trial.form.errors else 200)


@router.get("/purge")
async def ask_to_purge(
    request: Request, viewer: CurrentViewer, projects: Projects, registry: CurrentRegistry
) -> Response:
    """Ask which answers to remove."""
    return await _purge_form(request, viewer, projects, registry, Form())


@router.post("/purge")
async def purge(
    request: Request, viewer: CurrentViewer, cache: Cache, projects: Projects, registry: CurrentRegistry
) -> Response:
    """Remove answers from the response cache: those of the viewer's project, or as an operator those of any."""
    if not viewer.is_operator:
        viewer.principal.require(Scope.INFERENCE)  # as `DELETE /v1/cache`
    form = await read_form(request)
    errors = dict(form.errors)
    project_id = viewer.project_id
    if viewer.is_operator and form["project"]:
        project_id = await cache.project_id(form["project"])
        if project_id is None:
            errors["project"] = f"There is no project {form['project']!r}."
    older_than_s = seconds_of(form["older_than"], ("s", "m", "h", "d")) if form["older_than"] else None
    if form["older_than"] and (older_than_s is None or older_than_s > MAX_CACHE_TTL_S):
        errors["older_than"] = f"Must be a duration such as 7d or 24h, at most {MAX_CACHE_TTL_S // 86400}d."
    selected = form["project"] or form["model"] or form["older_than"]
    if not selected and "all" not in form.all("all"):
        errors["all"] = "Select answers above, or confirm that all of them are to be removed."
    if errors:
        return await _purge_form(request, viewer, projects, registry, form.with_errors(errors), 422)
    count = await cache.purge(project_id=project_id, model=form["model"] or None, older_than_s=older_than_s)
    return redirect(request, f"routing?purged={count}")


async def _view(viewer: Viewer, store: RoutingStore, registry: Registry, range_name: RangeName) -> RoutingView:
    span, end = RANGES[range_name], datetime.now(UTC)
    starts = parts_of(end - span.length, end, span.width)
    decided = await store.decided(starts, end, viewer.project_id)
    answers = await store.answers(viewer.project_id)
    return build_view(decided, answers, registry, len(starts), span.part, is_operator=viewer.is_operator)


def _page(
    request: Request, registry: Registry, view: RoutingView, range_name: RangeName, trial: Trial, **values: Any
) -> Response:
    status = values.pop("status", 200)
    return page_response(
        request.scope,
        "routing/routing.html",
        status,
        view=view,
        trial=trial,
        names_options=[(name, name) for name in names_of(registry)],
        range=range_name,
        ranges={name: span.text for name, span in RANGES.items()},
        purged=values.get("purged"),
    )


async def _purge_form(
    request: Request, viewer: Viewer, projects: KeyPagesStore, registry: Registry, form: Form, status: int = 200
) -> Response:
    names = await projects.project_names(SUGGESTED_PROJECTS) if viewer.is_operator else []
    choices = [("", "all models"), *((name, name) for name in registry.models)]
    return dialog_response(request, "routing/purge.html", status, form=form, project_names=names, model_choices=choices)


PAGE = Page(path="routing", title="Routing and cache", router=router, key="r", group="Insight")
