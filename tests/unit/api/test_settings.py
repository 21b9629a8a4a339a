"""Settings that depend on each other: the limits of images and files, and those of the request log."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from pydantic import ValidationError

from api.settings import ApiSettings

MIB = 1 << 20


def settings(**values: Any) -> ApiSettings:
    return ApiSettings(database_url="postgresql://unused", redis_url="redis://unused", **values)


@pytest.mark.parametrize(
    ("values", "part", "media"),
    [
        ({}, 3_061_841, 3_061_841),
        ({"max_body_bytes": 100_000}, 73_000, 73_000),
        ({"max_body_bytes": 1024}, 747, 747),
        ({"max_body_bytes": 16 * MIB}, 5_000_000, 12_247_367),
        ({"max_body_bytes": 64 * MIB}, 5_000_000, 20_000_000),
        ({"max_media_bytes": 1_000_000}, 1_000_000, 1_000_000),
        ({"max_part_bytes": 1_000_000}, 1_000_000, 3_061_841),
        ({"max_part_bytes": 3_100_000}, 3_100_000, 3_100_000),
        ({"max_part_bytes": 30_000_000, "max_body_bytes": 64 * MIB}, 30_000_000, 30_000_000),
    ],
)
def test_limits_that_are_not_set(values: dict[str, int], part: int, media: int) -> None:
    found = settings(**values)
    assert (found.max_part_bytes, found.max_media_bytes) == (part, media)
    assert len(base64.b64encode(bytes(media))) < found.max_body_bytes


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"max_part_bytes": 5_000_000}, "HEADRACE_MAX_BODY_BYTES"),
        ({"max_media_bytes": 20_000_000}, "HEADRACE_MAX_BODY_BYTES"),
        ({"max_part_bytes": 2_000_000, "max_media_bytes": 1_000_000}, "HEADRACE_MAX_MEDIA_BYTES"),
    ],
)
def test_limits_that_cannot_be_reached(values: dict[str, int], named: str) -> None:
    with pytest.raises(ValidationError, match=named) as caught:
        settings(**values)
    (problem,) = caught.value.errors()
    assert problem["ctx"]["param"] in values


KEY = base64.b64encode(b"k" * 32).decode()


@pytest.mark.parametrize(
    ("values", "param", "message"),
    [
        ({"request_log_level": "redacted"}, "request_log_level", "HEADRACE_LOG_KEY.*generate-key"),
        ({"request_log_level": "full"}, "request_log_level", "HEADRACE_LOG_KEY"),
        ({"log_key_previous": KEY}, "log_key_previous", "HEADRACE_LOG_KEY"),
        ({"log_retention_days": 91}, "log_metadata_days", "HEADRACE_LOG_RETENTION_DAYS, which is 91"),
    ],
)
def test_a_request_log_that_is_not_possible(values: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        settings(**values)
    (problem,) = caught.value.errors()
    assert problem["ctx"]["param"] == param


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"request_log_level": "some"}, "'none', 'metadata', 'redacted' or 'full'"),
        ({"log_key": "x"}, "base64 of 32 bytes"),
        ({"log_key": KEY, "log_key_previous": "x"}, "base64 of 32 bytes"),
    ],
)
def test_a_level_and_a_key_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**values)


def test_by_default_no_bodies_are_kept() -> None:
    assert settings().request_log_level == "metadata"
    assert settings(request_log_level="full", log_key=KEY).request_log_level == "full"
