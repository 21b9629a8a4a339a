"""Several regions: each keeps its own jobs, and any of them knows from an id where its home is."""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.domain.ids import REGION

# `/v1/jobs/job_<hex>_eu/stream`, `/v1/files/file-<hex>_eu`: whatever is asked for by an id of ours.
_HOME = re.compile(rf"/v1/(?:[a-z_]+/)+[a-z]+[-_][0-9a-f]{{32}}_({REGION})(?:/|$)")


class RegionRedirectMiddleware:
    """ASGI middleware: what is asked of a job, file or batch of another region is answered 307 to that region.

    307 keeps method and body (RFC 9110, 15.4.8). An id without a region, or of one that is not known, is served here.
    """

    def __init__(self, app: ASGIApp, own: str, regions: Mapping[str, str]) -> None:
        self._app = app
        self._others = {code: url for code, url in regions.items() if code != own}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = _HOME.match(scope["path"]) if scope["type"] == "http" else None
        home = self._others.get(found[1]) if found else None
        if home is None:
            await self._app(scope, receive, send)
            return
        query = scope["query_string"].decode("latin-1")
        location = f"{home}{scope['path']}{'?' if query else ''}{query}"
        await RedirectResponse(location, status_code=307)(scope, receive, send)
