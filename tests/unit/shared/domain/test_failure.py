"""The failure in a log's last event, as older and newer versions write it."""

from __future__ import annotations

import pytest

from shared.domain.job import Failure


@pytest.mark.parametrize(
    ("payload", "failure"),
    [
        ({"code": "engine_error", "message": "no"}, Failure("engine_error", "no")),
        ({"code": "invalid_request", "message": "no", "param": "n"}, Failure("invalid_request", "no", "n")),
        ({"code": "c", "message": "no", "param": "n", "hint": "of a newer version"}, Failure("c", "no", "n")),
    ],
)
def test_events_of_other_versions(payload: dict[str, str], failure: Failure) -> None:
    assert Failure.of(payload) == failure
    assert Failure.of(failure.payload()) == failure
