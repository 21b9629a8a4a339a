"""Delays before a request to an upstream is retried."""

from __future__ import annotations

import pytest

from workers.engines.upstream.backoff import BACKOFF_S, MAX_RETRY_AFTER_S, backoff_s, retry_after_s


def test_backoff() -> None:
    assert backoff_s(0, MAX_RETRY_AFTER_S + 1) is None
    assert (backoff_s(0, 0.0) or 0) >= BACKOFF_S[0] / 2, "Retry-After: 0 does not remove the delay"
    for failures, longest in enumerate([0.5, 1, 2, 4, 8, 8]):
        delay = backoff_s(failures, None)
        assert delay is not None
        assert longest / 2 <= delay <= longest
    requested = backoff_s(0, 10)
    assert requested is not None
    assert 10 <= requested <= 12.5


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("-3", 0),
        ("nan", None),
        ("", None),
        ("soon", None),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after_s({"Retry-After": value}) == seconds
