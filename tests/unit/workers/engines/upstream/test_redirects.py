"""Redirects are followed only within the origin of the upstream, so that its key reaches no other server."""

from __future__ import annotations

import pytest

from workers.engines.upstream.exchange import Call
from workers.engines.upstream.redirects import redirected

BASE = "https://team--app.modal.run/v1"
URL = f"{BASE}/chat/completions"
CALL = Call("chat/completions", {"model": "m"}, {"modal-key": "k"})


def follow(status: int, location: str) -> Call | None:
    return redirected(CALL, status, {"Location": location}, URL, BASE)


@pytest.mark.parametrize(
    "location", ["/v1/result?id=1", "https://team--app.modal.run:443/v1/result?id=1", "../result?id=1"]
)
def test_a_result_is_read_by_get(location: str) -> None:
    call = follow(303, location)
    assert call is not None
    assert (call.verb, call.body, call.headers) == ("GET", None, CALL.headers)
    assert call.path.startswith("https://team--app.modal.run")
    assert call.path.endswith("/result?id=1")


def test_a_temporary_redirect_repeats_the_request() -> None:
    call = follow(307, "/v2/chat/completions")
    assert call is not None
    assert (call.verb, call.body) == ("POST", CALL.body)
    assert call.path == "https://team--app.modal.run/v2/chat/completions"


@pytest.mark.parametrize(
    "location",
    [
        "https://elsewhere.example/v1/result",
        "http://team--app.modal.run/v1/result",
        "https://team--app.modal.run:8443/v1/result",
        "//elsewhere.example/v1/result",
        "https://team--app.modal.run@elsewhere.example/",
        "https://user@team--app.modal.run/v1/result",
        "https://[::1",
        "https://team--app.modal.run:port/",
        "file:///etc/passwd",
        "\\\\elsewhere.example/x",
    ],
)
def test_other_servers_are_not_followed(location: str) -> None:
    call = follow(303, location)
    assert call is None or call.path.startswith("https://team--app.modal.run/"), call


@pytest.mark.parametrize("status", [300, 301, 302, 304, 308])
def test_other_statuses_are_not_followed(status: int) -> None:
    assert follow(status, "/v1/result") is None


def test_a_redirect_without_location() -> None:
    assert redirected(CALL, 303, {}, URL, BASE) is None
