"""The pages work without the internet: all that they load is served by this application."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp

from api.app import create_app
from api.settings import ApiSettings

PAGES = ("/", "/docs")
TYPES = {"css": {"text/css"}, "js": {"text/javascript", "application/javascript"}, "svg": {"image/svg+xml"}}


class Elements(HTMLParser):
    """The addresses in a page: those that a browser loads, and those that a reader may follow."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loaded: set[str] = set()
        self.links: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data", "poster") and value:
                (self.links if tag == "a" else self.loaded).add(value)


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(ApiSettings(database_url="postgresql://unused", redis_url="redis://unused"))


def client_of(app: ASGIApp) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


@pytest.mark.parametrize("path", PAGES)
async def test_page_answers_get_and_head(client: httpx.AsyncClient, path: str) -> None:
    for method in ("GET", "HEAD"):
        response = await client.request(method, path)
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize("path", PAGES)
async def test_everything_a_page_loads_is_served_with_its_type(client: httpx.AsyncClient, path: str) -> None:
    page = Elements((await client.get(path)).text)
    assert page.loaded
    for address in page.loaded:
        assert re.fullmatch(r"static/[a-z-]+\.(css|js|svg)", address), "relative: it keeps a path prefix"
        response = await client.get(f"/{address}")
        assert response.status_code == 200, address
        assert response.headers["content-type"].partition(";")[0] in TYPES[address.rpartition(".")[2]]
        assert len(response.content) > 100
        again = await client.get(f"/{address}", headers={"If-None-Match": response.headers["etag"]})
        assert again.status_code == 304


@pytest.mark.parametrize("path", PAGES)
async def test_page_may_load_from_its_own_server_only(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    policy = response.headers["content-security-policy"]
    directives = {name: sources.split() for name, _, sources in (part.partition(" ") for part in policy.split("; "))}
    assert directives["default-src"] == ["'none'"]
    assert "'unsafe-inline'" not in directives["script-src"]
    for name, sources in directives.items():
        allowed = r"'(none|self|unsafe-inline|sha256-[A-Za-z0-9+/=]+)'|data:"
        assert all(re.fullmatch(allowed, source) for source in sources), f"{name} {sources}"


async def test_style_sheet_loads_nothing(client: httpx.AsyncClient) -> None:
    css = (await client.get("/static/swagger-ui.css")).text
    assert not re.search(r"@import|url\((?!['\"]?data:)", css)


async def test_landing_page_links_to_routes_of_the_application(app: FastAPI, client: httpx.AsyncClient) -> None:
    links = Elements((await client.get("/")).text).links
    own = {link for link in links if "://" not in link}
    assert own == {"console", "docs", "openapi.json", "healthz", "readyz", "metrics"}
    served = {getattr(route, "path", None) for route in app.routes}
    assert {f"/{link}" for link in own} <= served
    assert links - own == {"http://127.0.0.1:5555"}


@pytest.mark.parametrize("name", ["__init__.py", "../landing.html", "%2e%2e/landing.html", "docs.html", ""])
async def test_nothing_else_of_the_folders_is_served(client: httpx.AsyncClient, name: str) -> None:
    response = await client.get(f"/static/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


async def test_redoc_is_off(client: httpx.AsyncClient) -> None:
    assert (await client.get("/redoc")).status_code == 404


async def test_other_methods_are_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/")
    assert response.status_code == 405
    assert response.json()["error"]["code"] == "method_not_allowed"
