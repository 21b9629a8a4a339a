"""The console's error pages."""

from __future__ import annotations

from http import HTTPStatus

from starlette.responses import HTMLResponse, Response
from starlette.types import Scope

from api.console.csrf import SAFE_METHODS
from api.console.navigation import PREFIX, asks_for_part, browser_path, here_of
from api.console.security_headers import SECURITY_HEADERS
from api.console.templates import page_response, render
from api.http.conventions import Conventions

_TITLES = {
    401: "Sign in again",
    403: "Not allowed",
    404: "Not found",
    413: "Too large",
    429: "Too many requests",
    500: "The server had an error",
    503: "Temporarily unavailable",
}


def error_page(scope: Scope, status: int, message: str) -> Response:
    """The response to an error: a page, or for a script that replaces a part of a page, one for that part."""
    title = _TITLES.get(status) or HTTPStatus(status).phrase
    if asks_for_part(scope):
        return HTMLResponse(
            render("error_part.html", {"title": title, "message": message}), status, headers=SECURITY_HEADERS
        )
    return page_response(scope, "error.html", status, title=title, message=message, again=_again(scope))


def _again(scope: Scope) -> str | None:
    """The address of the page, to be tried again; None for what a form has sent, which no link can send."""
    if scope["method"] not in SAFE_METHODS:
        return None
    query = scope["query_string"].decode("latin-1")
    return here_of(browser_path(scope)) + (f"?{query}" if query else "")


CONVENTIONS = Conventions(PREFIX, error_page)
