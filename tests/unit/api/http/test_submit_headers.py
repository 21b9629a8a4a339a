"""Headers that may come several times: what keeps least applies."""

from __future__ import annotations

import pytest
from fastapi import Request

from api.http.submit_headers import SubmitHeaders, submit_headers
from shared.domain.errors import InvalidRequest
from shared.domain.log_level import LogLevel


async def read(*headers: tuple[str, str]) -> SubmitHeaders:
    encoded = [(name.encode(), value.encode()) for name, value in headers]
    return await submit_headers(Request({"type": "http", "headers": encoded}))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((), None),
        (("full",), LogLevel.FULL),
        ((" None ",), LogLevel.NONE),
        (("full", "none"), LogLevel.NONE),
        (("metadata, redacted",), LogLevel.METADATA),
        (("full", "redacted,full"), LogLevel.REDACTED),
    ],
)
async def test_the_strictest_level_applies(values: tuple[str, ...], expected: LogLevel | None) -> None:
    assert (await read(*(("x-headrace-log", value) for value in values))).log_level is expected


@pytest.mark.parametrize("values", [("",), ("full", "some"), ("none,",)])
async def test_an_unknown_level_is_refused_wherever_it_is(values: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest, match="must be one of none, metadata, redacted, full"):
        await read(*(("x-headrace-log", value) for value in values))


async def test_all_lines_of_cache_control_apply() -> None:
    control = (await read(("cache-control", "max-age=60"), ("cache-control", "no-store"))).cache_control
    assert (control.max_age_s, control.no_store) == (60, True)
