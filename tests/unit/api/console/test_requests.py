"""What the console derives from a request: addresses, and whether a page of another site made it."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers
from starlette.responses import Response

from api.console.cookies import session_token, set_session
from api.console.csrf import is_same_origin
from api.console.navigation import root_of


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/console", "console/"),
        ("/console/", "./"),
        ("/console/jobs", "./"),
        ("/console/jobs/", "../"),
        ("/console/jobs/job_1", "../"),
        ("/console/jobs/job_1/events", "../../"),
    ],
)
def test_addresses_are_relative_to_the_consoles_root(path: str, root: str) -> None:
    assert root_of(path) == root


@pytest.mark.parametrize(
    ("headers", "same"),
    [
        ({}, True),
        ({"sec-fetch-site": "same-origin", "origin": "https://console.example.com"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"host": "10.0.0.5:8000", "origin": "http://10.0.0.5:8000"}, True),
        ({"host": "10.0.0.5:8000", "origin": "http://10.0.0.5:8001"}, False),
        ({"host": "api:8000", "origin": "http://gpu.lan", "x-forwarded-host": "gpu.lan"}, True),
        ({"host": "api:8000", "origin": "http://gpu.lan"}, False),
        ({"host": "null", "origin": "null"}, False),
    ],
)
def test_the_origin_of_unsafe_requests(headers: dict[str, str], same: bool) -> None:
    assert is_same_origin(Headers(headers)) is same


def cookie_after(request: dict[str, str]) -> str:
    response = Response()
    set_session(response, Headers(request), "the-token")
    return response.headers["set-cookie"]


@pytest.mark.parametrize(
    ("headers", "secure"),
    [
        ({"origin": "https://llm.example.com"}, True),
        ({"x-forwarded-proto": "https"}, True),
        ({"origin": "http://127.0.0.1:8000", "x-forwarded-proto": "https"}, False),
        ({}, False),
    ],
)
def test_the_cookie_is_sent_over_https_only_if_the_browser_uses_it(headers: dict[str, str], secure: bool) -> None:
    assert ("Secure" in cookie_after(headers)) is secure


def test_the_cookie_of_each_port_is_its_own() -> None:
    first, second = (cookie_after({"host": f"127.0.0.1:{port}"}).partition(";")[0] for port in (8000, 8001))
    both = {"cookie": f"{first}; {second.replace('the-token', 'another')}"}
    assert session_token(Headers({"host": "127.0.0.1:8000", **both})) == "the-token"
    assert session_token(Headers({"host": "127.0.0.1:8001", **both})) == "another"
    assert session_token(Headers({"host": "llm.example.com", **both})) is None


def test_the_browser_derives_the_cookies_path() -> None:
    cookie = cookie_after({"host": "llm.example.com"})
    assert "Path" not in cookie, "a proxy's prefix is unknown"
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
