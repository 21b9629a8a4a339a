"""`/console/limits`: budgets and rate limits, what is left of them, and when it comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from api.console.limits.store import LimitPagesStore
from api.console.limits.view import budget_line, rate_line
from api.console.live import Broadcaster
from api.console.live_streams import CurrentStreams
from api.console.page import Page
from api.console.templates import page_response, render
from api.console.viewer import CurrentViewer
from api.http.dependencies import CurrentStreamSettings, resource
from api.http.sse import event_stream

PARTS = ("budgets", "rates")


class LimitPages:
    """Renders the page, and sends what changes."""

    def __init__(self, store: LimitPagesStore) -> None:
        self._store = store
        self.broadcaster: Broadcaster[int | None] = Broadcaster("limits", self.parts)

    async def parts(self, project_id: int | None) -> Mapping[str, str]:
        """The parts of the page, for the members of a project, or for operators (None)."""
        values = {
            "budgets": [budget_line(budget) for budget in await self._store.budgets(project_id)],
            "limits": [rate_line(limit) for limit in await self._store.rate_limits(project_id)],
            "is_operator": project_id is None,
        }
        return {name: render(f"limits/{name}.html", values) for name in PARTS}


CurrentPages = Annotated[LimitPages, Depends(resource(LimitPages))]
router = APIRouter()


@router.get("")
async def limits_page(request: Request, viewer: CurrentViewer, pages: CurrentPages) -> Response:
    """The page."""
    return page_response(request.scope, "limits/limits.html", parts=await pages.parts(viewer.project_id))


@router.get("/live")
async def limits_events(
    viewer: CurrentViewer, pages: CurrentPages, streams: CurrentStreams, settings: CurrentStreamSettings
) -> Response:
    """The parts of the page that change, as server-sent events."""
    return event_stream(pages.broadcaster.frames(viewer.project_id, streams), settings)


PAGE = Page(path="limits", title="Limits", router=router, key="l", group="Insight")
