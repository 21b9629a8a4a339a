"""Names the parameters of the Responses API in errors about jobs."""

from __future__ import annotations

from shared.domain.errors import InvalidRequest
from shared.domain.job import Failure, JobSummary

# A job's parameters that have other names in the Responses API.
_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "structured_outputs": "text.format",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "include",
}


def rename_param(error: InvalidRequest) -> InvalidRequest:
    """Replace a job's parameter with the Responses API's, in the error's `param` and at the start of its message."""
    return error.renamed(_NAMES)


def rename_failure(_: JobSummary, failure: Failure) -> Failure:
    """Do the same in the failure of a job."""
    return failure.renamed(_NAMES)
