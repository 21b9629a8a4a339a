"""`/console/limits`: budgets and rate limits, what is left of them, and when it comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from api.console.key_names import KeyNamesStore
from api.console.limits.store import MOST, BudgetStatesStore
from api.console.limits.view import RateLine, budget_line, rate_line
from api.console.live import Broadcaster
from api.console.live_streams import CurrentStreams
from api.console.page import Page
from api.console.templates import page_response, render
from api.console.viewer import CurrentViewer
from api.http.dependencies import CurrentStreamSettings, resource
from api.http.sse import event_stream
from api.limits.limiter import RateLimiter
from api.limits.store import LimitStore

PARTS = ("budgets", "rates")


class LimitPages:
    """Renders the page, and sends what changes."""

    def __init__(
        self, budgets: BudgetStatesStore, limits: LimitStore, limiter: RateLimiter, names: KeyNamesStore
    ) -> None:
        self._budgets = budgets
        self._limits = limits
        self._limiter = limiter
        self._names = names
        self.broadcaster: Broadcaster[int | None] = Broadcaster("limits", self.parts)

    async def parts(self, project_id: int | None) -> Mapping[str, str]:
        """The parts of the page, for the members of a project, or for operators (None)."""
        values = {
            "budgets": [budget_line(budget) for budget in await self._budgets.budgets(project_id)],
            "limits": await self._rate_lines(project_id),
            "is_operator": project_id is None,
        }
        return {name: render(f"limits/{name}.html", values) for name in PARTS}

    async def _rate_lines(self, project_id: int | None) -> list[RateLine]:
        """The rate limits of a project and the defaults, or all limits; at most `MOST`."""
        limits = [
            limit
            for limit in await self._limits.all()
            if project_id is None or limit.project_id is None or limit.project_id == project_id
        ]
        limits = sorted(limits, key=lambda limit: (limit.project or "", limit.number))[:MOST]
        names = await self._names.names(limit.key_id for limit in limits if limit.key_id is not None)
        left = await asyncio.gather(*(self._limiter.left(limit.limit()) for limit in limits))
        return [
            rate_line(limit, None if limit.key_id is None else names[limit.key_id].key, found)
            for limit, found in zip(limits, left, strict=True)
        ]


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
