"""Finds the session of each request to the console, and adds the headers that protect its pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast
from urllib.parse import quote

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.console.cookies import session_token
from api.console.csrf import SAFE_METHODS, csrf_token, is_same_origin
from api.console.navigation import PREFIX, asks_for_part, browser_path, root_of
from api.console.security_headers import SECURITY_HEADERS
from api.console.sessions import Sessions
from api.console.viewer import Viewer
from api.http.dependencies import Resources
from api.http.errors import render
from api.keys.open_requests import OpenRequests
from api.keys.store import digest
from shared.domain.errors import Forbidden, Unauthorized

SIGN_IN = "sign-in"
_PUBLIC = (f"{PREFIX}/{SIGN_IN}", f"{PREFIX}/static/")


class ConsoleMiddleware:
    """ASGI middleware: what `api.keys.middleware` is for the API.

    Requests without a session are led to the sign-in page, except those for that page and for its files. All others
    have a viewer, and are registered like requests of the API, so that revoking a key or ending a session closes its
    open pages. Unsafe requests from pages of other sites are refused; `api.console.csrf` also checks the token of
    their session.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or (path != PREFIX and not path.startswith(f"{PREFIX}/")):
            await self._app(scope, receive, send)
            return

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        if scope["method"] not in SAFE_METHODS and not is_same_origin(headers):
            await render(Forbidden("This request was made by a page of another site."))(scope, receive, send_protected)
        elif path == _PUBLIC[0] or path.startswith(_PUBLIC[1]):
            await self._app(scope, receive, send_protected)
        else:
            await self._with_viewer(scope, headers, receive, send_protected)

    async def _with_viewer(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        resources = cast(Resources, cast(FastAPI, scope["app"]).state.resources)
        sessions = resources.get(Sessions)
        token = session_token(headers) or ""
        try:
            principal = await sessions.principal(token)
            names = await sessions.names(principal)
        except Unauthorized:
            await _sign_in(scope, headers)(scope, receive, send)
            return
        except Exception as error:
            await render(error)(scope, receive, send)
            return
        requests = resources.get(OpenRequests)
        state: dict[str, Any] = scope.setdefault("state", {})
        state["viewer"] = Viewer(principal, names.key, names.project, token, csrf_token(token))
        disconnect: Callable[[], None] | None = state.get("disconnect")  # see `api.http.server`
        request = state["open_request"] = requests.enter(principal, disconnect, digest(token))
        try:
            await self._app(scope, receive, send)
        finally:
            requests.leave(request)


def _sign_in(scope: Scope, headers: Headers) -> ASGIApp:
    """The response to a request without a session: the sign-in page, which leads back to a page that was asked for."""
    if scope["method"] not in SAFE_METHODS or headers.get("accept") == "text/event-stream":
        return render(Unauthorized("Your session has ended. Sign in again."))
    if asks_for_part(scope):
        return Response(status_code=401, headers={"HX-Redirect": SIGN_IN})  # resolved against the layout's root
    path = browser_path(scope)
    query = scope["query_string"].decode("latin-1")
    wanted = path.removeprefix(PREFIX).strip("/") + (f"?{query}" if query else "")
    location = SIGN_IN + (f"?next={quote(wanted, safe='')}" if wanted else "")
    return RedirectResponse(root_of(path) + location, status_code=303)
