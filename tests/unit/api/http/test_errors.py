"""The HTTP status of a synchronous call whose job did not complete."""

from __future__ import annotations

import pytest

from api.http.errors import render_failure
from shared.domain.errors import ErrorCode
from shared.domain.job import Failure

STATUSES = {
    ErrorCode.CANCELLED: 409,
    ErrorCode.INVALID_REQUEST: 400,
    ErrorCode.ENGINE_ERROR: 500,
    ErrorCode.UPSTREAM_ERROR: 502,
    ErrorCode.DEADLINE_EXCEEDED: 504,
    ErrorCode.WORKER_LOST: 500,
    ErrorCode.CANNOT_CONTINUE: 500,
    ErrorCode.ATTEMPTS_EXHAUSTED: 500,
    ErrorCode.MODEL_NOT_FOUND: 404,
}


@pytest.mark.parametrize("code", ErrorCode)
def test_each_error_of_a_job_has_a_status(code: ErrorCode) -> None:
    response = render_failure(Failure(code, "why"))
    assert response.status_code == STATUSES[code]
    assert response.headers["x-should-retry"] == "false", "the job has ended; another call is a new one"
