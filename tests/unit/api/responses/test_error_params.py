"""Errors about a job name the parameters of the Responses API."""

from __future__ import annotations

import pytest

from api.batches.endpoints import ENDPOINTS
from api.responses.error_params import rename_param
from shared.domain.errors import InvalidRequest


@pytest.mark.parametrize(
    ("message", "param", "renamed_message", "renamed_param"),
    [
        ("messages: too long", "messages", "input: too long", "input"),
        ("max_tokens: too many", "max_tokens", "max_output_tokens: too many", "max_output_tokens"),
        ("The template rejects the messages", "messages", "The template rejects the messages", "input"),
        ("temperature: too high", "temperature", "temperature: too high", "temperature"),
        ("messages: too long", None, "messages: too long", None),
    ],
)
def test_job_parameters_are_renamed(
    message: str, param: str | None, renamed_message: str, renamed_param: str | None
) -> None:
    for rename in (rename_param, ENDPOINTS["/v1/responses"].rename_param):
        error = rename(InvalidRequest(message, param=param))
        assert (error.message, error.param) == (renamed_message, renamed_param)


@pytest.mark.parametrize("url", ["/v1/chat/completions", "/v1/completions"])
def test_other_endpoints_have_the_parameters_of_a_job(url: str) -> None:
    error = InvalidRequest("messages: too long", param="messages")
    assert ENDPOINTS[url].rename_param(error) is error
