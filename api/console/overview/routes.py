"""`/console`: is it healthy, and if not, why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from api.console.live import Broadcaster
from api.console.live_streams import CurrentStreams
from api.console.overview.snapshot import DEFAULT_RANGE, RANGES, RangeName, Snapshots
from api.console.overview.view import RANGE_NAMES, build_view
from api.console.page import Page
from api.console.templates import page_response, render
from api.console.viewer import CurrentViewer, Viewer
from api.http.dependencies import CurrentStreamSettings, resource
from api.http.sse import event_stream
from shared.config.models.loader import Registry

PARTS = ("health", "stats", "chart", "events", "models")
Range = Annotated[RangeName, Query(alias="range")]


class Audience(NamedTuple):
    """Those who see the same overview."""

    project_id: int | None
    range: RangeName


class Overview:
    """Renders the overview, and sends what changes."""

    def __init__(self, snapshots: Snapshots, registry: Registry) -> None:
        self._snapshots = snapshots
        self._registry = registry
        self.broadcaster = Broadcaster("overview", self.parts)

    async def parts(self, audience: Audience) -> Mapping[str, str]:
        """The parts of the page by name, as HTML."""
        snapshot = await self._snapshots.get(audience.range)
        view = build_view(snapshot, self._registry, audience.project_id)
        return {name: render(f"overview/{name}.html", {"view": view}) for name in PARTS}


CurrentOverview = Annotated[Overview, Depends(resource(Overview))]
router = APIRouter()


@router.get("")
async def overview_page(
    request: Request, viewer: CurrentViewer, overview: CurrentOverview, range_name: Range = DEFAULT_RANGE
) -> Response:
    """The page."""
    parts = await overview.parts(_audience(viewer, range_name))
    return page_response(
        request.scope, "overview/overview.html", parts=parts, range=range_name, ranges=RANGES, range_names=RANGE_NAMES
    )


@router.get("/overview/live")
async def overview_events(
    viewer: CurrentViewer,
    overview: CurrentOverview,
    streams: CurrentStreams,
    settings: CurrentStreamSettings,
    range_name: Range = DEFAULT_RANGE,
) -> Response:
    """The parts of the page that change, as server-sent events."""
    return event_stream(overview.broadcaster.frames(_audience(viewer, range_name), streams), settings)


def _audience(viewer: Viewer, range_name: RangeName) -> Audience:
    return Audience(viewer.project_id, range_name)


PAGE = Page(path="", title="Overview", router=router, key="o")
