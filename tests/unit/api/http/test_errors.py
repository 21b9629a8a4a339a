"""The HTTP statuses of errors."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import DBAPIError

from api.http.errors import render, render_failure
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


@pytest.mark.parametrize("sqlstate", ["22021", "22P05"])
def test_a_nul_that_postgresql_refuses_is_the_fault_of_the_request(sqlstate: str) -> None:
    """As a text, and in a value of `jsonb`, such as the options of a project."""
    refused = Exception("refused")
    refused.sqlstate = sqlstate  # type: ignore[attr-defined]
    assert render(DBAPIError("UPDATE", None, refused)).status_code == 400
