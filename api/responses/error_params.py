"""Names the parameters of the Responses API in errors about jobs."""

from __future__ import annotations

from dataclasses import replace

from shared.domain.errors import InvalidRequest
from shared.domain.job import Failure, Job

# A job's parameters that have other names in the Responses API.
_NAMES = {"messages": "input", "max_tokens": "max_output_tokens", "structured_outputs": "text.format"}


def rename_param(error: InvalidRequest) -> InvalidRequest:
    """Replace a job's parameter with the Responses API's, in the error's `param` and at the start of its message."""
    if error.param not in _NAMES:
        return error
    param, message = _renamed(error.param, error.message)
    return InvalidRequest(message, param=param)


def rename_failure(_: Job, failure: Failure) -> Failure:
    """Do the same in the failure of a job."""
    if failure.param not in _NAMES:
        return failure
    param, message = _renamed(failure.param, failure.message)
    return replace(failure, param=param, message=message)


def _renamed(job_param: str, message: str) -> tuple[str, str]:
    param = _NAMES[job_param]
    return param, f"{param}{message.removeprefix(job_param)}" if message.startswith(job_param) else message
