"""Delays before a request to an upstream is retried."""

from __future__ import annotations

from workers.engines.upstream.backoff import BACKOFF_S, MAX_NAMED_S, backoff_s


def test_backoff() -> None:
    assert backoff_s(0, MAX_NAMED_S + 1) is None
    assert backoff_s(0, None, limited=True) is None, "only the server knows when its rate limit ends"
    assert backoff_s(0, 0.0, limited=True) is not None
    assert (backoff_s(0, 0.0) or 0) >= BACKOFF_S[0] / 2, "Retry-After: 0 does not remove the delay"
    for failures, longest in enumerate([0.5, 1, 2, 4, 8, 8]):
        delay = backoff_s(failures, None)
        assert delay is not None
        assert longest / 2 <= delay <= longest
    named = backoff_s(0, 2)
    assert named is not None
    assert 2 <= named <= 2.5
