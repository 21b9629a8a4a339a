"""When an upstream says that a request may be repeated."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from workers.engines.upstream.retry_after import MAX_S, retry_after_s


def in_a_minute(form: str) -> str:
    moment = datetime.now(UTC) + timedelta(seconds=60)
    match form:
        case "http":
            return moment.strftime("%a, %d %b %Y %H:%M:%S GMT")
        case "s":
            return str(int(moment.timestamp()))
        case "ms":
            return str(int(moment.timestamp() * 1000))
        case _:
            return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("-3", 0),
        ("nan", None),
        ("inf", MAX_S),
        ("1e300", MAX_S),
        ("", None),
        ("soon", None),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
        ("Sun, 06 Nov 9994 08:49:37 GMT", MAX_S),
        ("Sun, 06 Nov 99999999999 08:49:37 GMT", None),
        (f"Sun, 06 Nov 1994 08:49:37 +{'9' * 30}", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after_s({"Retry-After": value}) == seconds


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After-Ms": "250", "Retry-After": "1"}, 0.25),
        ({"Retry-After": "7", "x-ratelimit-reset-requests": "1s"}, 7),
        ({"x-ratelimit-reset-requests": "20ms"}, 0.02),
        ({"X-RateLimit-Reset-Tokens": "6m0s"}, 360),
        ({"x-ratelimit-reset-tokens": "1h2m3.5s"}, MAX_S),
        ({"x-ratelimit-reset-tokens": "2m59.56s"}, 179.56),
        ({"x-ratelimit-reset-requests": "tomorrow"}, None),
        ({"x-ratelimit-reset-requests": ""}, None),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s"}, 1),
        (
            {
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-remaining-requests": "8",
                "x-ratelimit-reset-tokens": "6m0s",
                "x-ratelimit-remaining-tokens": "0",
            },
            360,
        ),
        ({"x-ratelimit-reset": "12"}, 12),
        ({"ratelimit-reset": "12"}, 12),
        ({"anthropic-ratelimit-requests-limit": "50"}, None),
    ],
)
def test_rate_limit_headers(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("Retry-After", "http"),
        ("anthropic-ratelimit-requests-reset", "rfc3339"),
        ("anthropic-ratelimit-input-tokens-reset", "rfc3339"),
        ("x-ratelimit-reset", "s"),
        ("X-RateLimit-Reset", "ms"),
    ],
)
def test_moments(name: str, form: str) -> None:
    before = time.monotonic()
    seconds = retry_after_s({name: in_a_minute(form)})
    assert seconds is not None
    assert 58 - (time.monotonic() - before) <= seconds <= 60
