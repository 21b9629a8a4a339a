"""What protects the console: its headers, and the checks of requests that other sites make."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.support.stack import Stack

POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'"


@contextmanager
def sign_in(stack: Stack, key: str) -> Iterator[httpx.Client]:
    """A signed-in client."""
    with httpx.Client(base_url=f"{stack.url}/console") as client:
        assert client.post("sign-in", data={"key": key}).status_code == 303
        yield client


@pytest.mark.parametrize("path", ["", "/", "/sign-in", "/no-such-page", "/static/x/console.css", "/static/x/none.js"])
@pytest.mark.parametrize("signed_in", [True, False])
def test_every_response_has_the_headers(sim_stack: Stack, operator_key: str, path: str, signed_in: bool) -> None:
    with sign_in(sim_stack, operator_key) if signed_in else httpx.Client() as client:
        response = client.get(f"{sim_stack.url}/console{path}")
    assert response.headers["content-security-policy"].startswith(POLICY)
    assert "unsafe" not in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "same-origin"
    assert "no-store" in response.headers["cache-control"]


def test_a_request_without_the_sessions_token_is_refused(sim_stack: Stack, operator_key: str) -> None:
    with sign_in(sim_stack, operator_key) as client, sign_in(sim_stack, operator_key) as other:
        for fields in ({}, {"csrf_token": ""}, {"csrf_token": token_of(other)}):
            assert client.post("sign-out", data=fields).status_code == 403
        assert client.post("sign-out", headers={"x-csrf-token": token_of(other)}).status_code == 403
        assert client.get("").status_code == 200, "the session goes on"
        assert client.post("sign-out", data={"csrf_token": token_of(client)}).status_code == 303


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://elsewhere.example.com"},
        {"Origin": "null"},
    ],
)
def test_a_request_of_another_site_is_refused(sim_stack: Stack, operator_key: str, headers: dict[str, str]) -> None:
    with sign_in(sim_stack, operator_key) as client:
        token = {"csrf_token": token_of(client)}
        assert client.post("sign-out", data=token, headers=headers).status_code == 403
        assert client.post("sign-in", data={"key": operator_key}, headers=headers).status_code == 403


@pytest.mark.parametrize(
    "target", ["//elsewhere.example.com", "https://elsewhere.example.com", "../v1", "\\x", "a/../../v1"]
)
def test_the_sign_in_leads_to_pages_of_the_console_only(sim_stack: Stack, operator_key: str, target: str) -> None:
    response = httpx.post(f"{sim_stack.url}/console/sign-in", data={"key": operator_key, "next": target})
    assert response.headers["location"] == "./"


def test_a_session_is_no_api_key(sim_stack: Stack, operator_key: str) -> None:
    with sign_in(sim_stack, operator_key) as client:
        assert client.get(f"{sim_stack.url}/v1/models").status_code == 401
        (token,) = client.cookies.values()
        response = httpx.get(f"{sim_stack.url}/v1/models", headers={"Authorization": f"Bearer {token}"})
        assert response.status_code == 401


def test_an_api_key_is_no_session(sim_stack: Stack, operator_key: str) -> None:
    response = httpx.get(f"{sim_stack.url}/console", headers={"Authorization": f"Bearer {operator_key}"})
    assert response.status_code == 303


def test_a_large_form_is_refused_before_the_sign_in(sim_stack: Stack) -> None:
    response = httpx.post(f"{sim_stack.url}/console/sign-in", content=b"key=" + b"x" * 20_000)
    assert response.status_code == 413


def test_the_console_can_be_off(sim_stack: Stack) -> None:
    with sim_stack.second_api(HEADRACE_CONSOLE="off") as url:
        for path in ("/console", "/console/sign-in", "/console/static/x/console.css"):
            response = httpx.get(url + path)
            assert response.status_code == 404
            assert response.json()["error"]["code"] == "not_found"
        assert "console" not in httpx.get(url).text
        assert "/v1/console/links" not in httpx.get(f"{url}/openapi.json", timeout=60).json()["paths"]


def token_of(client: httpx.Client) -> str:
    """The CSRF token of a client's session."""
    page = client.get("/").text
    return page.partition('name="csrf_token" value="')[2].partition('"')[0]
