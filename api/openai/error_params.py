"""Names the parameters of OpenAI's API in errors about jobs."""

from __future__ import annotations

from collections.abc import Mapping

from shared.domain.errors import InvalidRequest
from shared.domain.job import Failure, Job
from shared.domain.request import GenerateRequest


def rename_param(request: GenerateRequest, error: InvalidRequest) -> InvalidRequest:
    """Replace a job's parameter with the one that OpenAI's clients send, in the error's `param` and message."""
    return error.renamed(_names(request))


def rename_failure(job: Job, failure: Failure) -> Failure:
    """Do the same in the failure of a job."""
    return failure.renamed(_names(job.request))


def _names(request: GenerateRequest) -> Mapping[str, str]:
    """A JSON schema is requested by `response_format`; vLLM's `structured_outputs` is for what OpenAI does not have.

    A completion with `echo` requests the log probabilities of the prompt by `logprobs`, and each completion the number
    of alternatives.
    """
    structure = request.structured_outputs
    names = {}
    if structure is not None and (structure.json_schema is not None or bool(structure.json_object)):
        names["structured_outputs"] = "response_format"
    if request.messages is None:
        names["top_logprobs"] = "logprobs"
    if request.echo and request.messages is None and request.prompt_logprobs == request.logprobs:
        names["prompt_logprobs"] = "logprobs"
    return names
