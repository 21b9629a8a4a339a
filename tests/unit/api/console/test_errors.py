"""The console's error pages, before and after the sign-in, and within a page."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from starlette.types import Scope as AsgiScope

from api.app import create_app
from api.console.errors import error_page
from api.console.viewer import Viewer
from api.keys.principal import Principal, Scope
from api.settings import ApiSettings

HOSTILE = '<img src=x onerror="alert(1)">'


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(ApiSettings(database_url="postgresql://unused", redis_url="redis://unused"))


def scope_of(
    app: FastAPI,
    path: str = "/console/jobs/x",
    *,
    signed_in: bool,
    htmx: bool = False,
    method: str = "GET",
    query: str = "",
) -> AsgiScope:
    state: dict[str, Any] = {}
    if signed_in:
        principal = Principal(1, 1, frozenset({Scope.INFERENCE}))
        state["viewer"] = Viewer(principal, "ann", "search", "session", "csrf")
    headers = [(b"hx-request", b"true")] if htmx else []
    return {
        "type": "http", "method": method, "app": app, "path": path, "raw_path": path.encode(),
        "query_string": query.encode(), "headers": headers, "state": state,
    }  # fmt: skip


@pytest.mark.parametrize("signed_in", [True, False])
@pytest.mark.parametrize(
    ("status", "title"),
    [
        (400, "Bad Request"),
        (403, "Not allowed"),
        (404, "Not found"),
        (500, "The server had an error"),
        (503, "Temporarily unavailable"),
    ],
)
def test_errors_are_pages(app: FastAPI, status: int, title: str, signed_in: bool) -> None:
    response = error_page(scope_of(app, signed_in=signed_in), status, f"Because of {HOSTILE}.")
    html = bytes(response.body).decode()
    assert response.status_code == status
    assert f"<h1>{title}</h1>" in html
    assert "Because of &lt;img" in html
    assert HOSTILE not in html
    assert ("Sign out" in html) is signed_in
    assert '<base href="../">' in html
    assert response.headers["content-security-policy"].startswith("default-src 'none'")


def test_a_page_that_needs_a_scope_says_how_to_get_it(app: FastAPI) -> None:
    html = bytes(error_page(scope_of(app, signed_in=True), 403, "No.").body).decode()
    assert "--scope admin" in html


def test_an_error_within_a_page_is_a_part(app: FastAPI) -> None:
    response = error_page(scope_of(app, signed_in=True, htmx=True), 503, "The database is unavailable.")
    html = bytes(response.body).decode()
    assert response.status_code == 503
    assert "The database is unavailable." in html
    assert "<html" not in html


def again(app: FastAPI, path: str, **options: Any) -> str | None:
    """The address behind "Try again", as the template writes it."""
    html = bytes(error_page(scope_of(app, path, **options), 503, "Away.").body).decode()
    before, found, _ = html.partition('">Try again</a>')
    return before.rpartition('href="')[2] if found else None


@pytest.mark.parametrize("signed_in", [True, False])
def test_try_again_keeps_the_conditions_of_the_page(app: FastAPI, signed_in: bool) -> None:
    query = "status=failed&model=a%26b"
    assert again(app, "/console/jobs", signed_in=signed_in, query=query) == f"./jobs?{query.replace('&', '&amp;')}"
    assert again(app, "/console", signed_in=signed_in) == "./"


def test_what_a_form_has_sent_cannot_be_tried_again_by_a_link(app: FastAPI) -> None:
    assert again(app, "/console/jobs/job_1/replay", signed_in=True, method="POST") is None


@pytest.mark.parametrize("path", ["https://elsewhere.example.com/", "javascript:alert(1)", "//elsewhere.example.com"])
def test_an_address_that_looks_like_another_site_stays_below_the_console(app: FastAPI, path: str) -> None:
    html = bytes(error_page(scope_of(app, f"/console/{path}", signed_in=True), 503, "Away.").body).decode()
    for start in ("http", "javascript", "//"):
        assert f'href="{start}' not in html
