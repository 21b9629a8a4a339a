"""Names the parameters of the Messages API in errors about jobs."""

from __future__ import annotations

from collections.abc import Mapping

from api.anthropic.schemas import CountTokensRequest
from shared.domain.errors import InvalidRequest
from shared.domain.job import Failure, JobSummary

# A job's parameters that have other names in the Messages API.
_NAMES = {
    "structured_outputs": "output_config.format",
    "stop": "stop_sequences",
    "thinking_token_budget": "thinking.budget_tokens",
    "reasoning_effort": "output_config.effort",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "continue_final_message": "messages",
}


def rename_param(body: CountTokensRequest, error: InvalidRequest) -> InvalidRequest:
    """Replace a job's parameter with that of the request, in the error's `param` and at the start of its message."""
    return error.renamed(_names(body))


def rename_failure(_: JobSummary, failure: Failure) -> Failure:
    """Do the same in the failure of a job."""
    return failure.renamed(_NAMES)


def _names(body: CountTokensRequest) -> Mapping[str, str]:
    """Thinking that is turned off has no effort."""
    is_off = body.thinking is not None and body.thinking.type == "disabled"
    return {**_NAMES, "reasoning_effort": "thinking.type"} if is_off else _NAMES
