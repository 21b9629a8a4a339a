"""Redirects requests to the region that owns the resource, which is part of its id."""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.domain.ids import REGION

# `/v1/jobs/job_<hex>_eu/stream`, `/v1/files/file-<hex>_eu`: every path with the id of a resource.
_REGION_IN_PATH = re.compile(rf"/v1/(?:[a-z_]+/)+[a-z]+[-_][0-9a-f]{{32}}_({REGION})(?:/|$)")


class RegionRedirectMiddleware:
    """ASGI middleware: redirects requests for a job, file, batch or response of another region to that region.

    Status 307 keeps method and body (RFC 9110, 15.4.8). Ids without a region or with an unknown one are served here.
    """

    def __init__(self, app: ASGIApp, own: str, regions: Mapping[str, str]) -> None:
        self._app = app
        self._others = {code: url for code, url in regions.items() if code != own}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match = _REGION_IN_PATH.match(scope["path"]) if scope["type"] == "http" else None
        home = self._others.get(match[1]) if match else None
        if home is None:
            await self._app(scope, receive, send)
            return
        query = scope["query_string"].decode("latin-1")
        location = f"{home}{scope['path']}{'?' if query else ''}{query}"
        await RedirectResponse(location, status_code=307)(scope, receive, send)
