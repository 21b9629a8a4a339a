"""Cross-origin requests from browsers (CORS)."""

from __future__ import annotations

from collections.abc import Collection

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.openapi import HEADERS
from api.http.rate_limits import ANTHROPIC_HEADERS, OPENAI_HEADERS

RATE_LIMITS = (*OPENAI_HEADERS, *ANTHROPIC_HEADERS)
# Response headers that scripts may read, beside those that browsers always allow.
EXPOSED = (*HEADERS, *RATE_LIMITS, "retry-after-ms", "x-request-id", "request-id", "x-should-retry")
METHODS = ("GET", "POST", "DELETE")
ANY_ORIGIN = "*"


def allow_origins(app: ASGIApp, origins: Collection[str], open_paths: Collection[str] = ()) -> ASGIApp:
    """Let scripts of these origins (`*`: of all) call the application, and scripts of all origins the `open_paths`.

    This must be the outermost layer, so that all errors have the headers; otherwise scripts cannot read them. All
    request headers are allowed, because SDKs send their own. Cookies are not, because the API does not use any. The
    server may be in a private network, for which browsers ask.
    """
    restricted = _allow(app, origins) if origins else app
    if not open_paths:
        return restricted
    to_all = _allow(app, (ANY_ORIGIN,))

    async def by_path(scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["type"] == "http" and scope["path"] in open_paths
        await (to_all if is_open else restricted)(scope, receive, send)

    return by_path


def _allow(app: ASGIApp, origins: Collection[str]) -> ASGIApp:
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=METHODS,
        allow_headers=["*"],
        allow_private_network=True,
        expose_headers=EXPOSED,
    )
