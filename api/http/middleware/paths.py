"""Accepts paths with superfluous slashes, as clients build them from an address that ends with a slash."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

_SLASHES = re.compile("/{2,}")


class PathMiddleware:
    """ASGI middleware: merges repeated slashes, and removes those at the end.

    A redirect would not do: many clients do not follow those of a POST, or send them without their key, and a server
    behind a TLS proxy does not know its own address.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            if "//" in path or path.endswith("/"):
                scope["path"] = _SLASHES.sub("/", path).rstrip("/") or path
        await self._app(scope, receive, send)
