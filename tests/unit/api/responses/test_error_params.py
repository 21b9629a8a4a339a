"""Errors about a job name the parameters of the Responses API."""

from __future__ import annotations

import pytest

from api.batches.endpoints import ENDPOINTS
from api.responses.error_params import rename_param
from shared.domain.errors import InvalidRequest
from shared.domain.request import GenerateRequest, StructuredOutputs


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
    error = InvalidRequest(message, param=param)
    for renamed in (rename_param(error), ENDPOINTS["/v1/responses"].rename_param(GenerateRequest(), error)):
        assert (renamed.message, renamed.param) == (renamed_message, renamed_param)


@pytest.mark.parametrize("url", ["/v1/chat/completions", "/v1/completions"])
def test_other_endpoints_have_the_parameters_of_a_job(url: str) -> None:
    error = InvalidRequest("messages: too long", param="messages")
    assert ENDPOINTS[url].rename_param(GenerateRequest(), error) is error


@pytest.mark.parametrize(
    ("structure", "param"),
    [
        (StructuredOutputs(json_schema={"minItems": 2**31}), "response_format"),
        (StructuredOutputs(json_object=True), "response_format"),
        (StructuredOutputs(regex="a{99999}"), "structured_outputs"),
    ],
    ids=["schema", "object", "regex"],
)
@pytest.mark.parametrize("url", ["/v1/chat/completions", "/v1/completions"])
def test_an_error_about_a_line_names_the_parameter_that_openais_clients_send(
    url: str, structure: StructuredOutputs, param: str
) -> None:
    request = GenerateRequest(structured_outputs=structure)
    error = InvalidRequest("structured_outputs: too large", param="structured_outputs")
    renamed = ENDPOINTS[url].rename_param(request, error)
    assert (renamed.param, renamed.message) == (param, f"{param}: too large")
