"""The body of a response object."""

from __future__ import annotations

from typing import Any

from api.responses.error_params import rename_failure
from shared.domain.errors import ErrorCode
from shared.domain.job import Failure, JobStatus, JobSummary
from shared.domain.response import ENCRYPTED, StoredResponse

# The response status for each job status.
STATUS = {
    JobStatus.QUEUED: "queued",
    JobStatus.IN_PROGRESS: "in_progress",
    JobStatus.CANCELLING: "in_progress",
    JobStatus.COMPLETED: "completed",
    JobStatus.INCOMPLETE: "incomplete",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "cancelled",
    JobStatus.EXPIRED: "failed",
}

# Values of parameters that the request did not set.
_UNSET: dict[str, Any] = {
    "instructions": None,
    "previous_response_id": None,
    "max_output_tokens": None,
    "temperature": None,
    "top_p": None,
    "top_logprobs": None,
    "user": None,
    "safety_identifier": None,
    "prompt_cache_key": None,
}


def view(response: StoredResponse, status: JobStatus, model: str | None = None) -> dict[str, Any]:
    """Build a response with this status, without the fields that are set at its end.

    `model`: the model that answers, if it is not the job's.
    """
    job, parameters = response.job, response.facts.request_params
    return {
        "id": response.id,
        "object": "response",
        "created_at": int(job.created_at.timestamp()),
        "status": STATUS[status],
        "model": model or job.model,
        "error": None,
        "incomplete_details": None,
        "output": [],
        "usage": None,
        "metadata": job.metadata,
        **_UNSET,
        **{name: value for name, value in parameters.items() if name != ENCRYPTED},
        "reasoning": {"effort": None, "summary": None, **parameters["reasoning"]},
    }


def usage(counted: dict[str, int], reasoning_tokens: int) -> dict[str, Any]:
    """Convert the usage in a log's last event. `reasoning_tokens` applies unless the upstream has reported them."""
    prompt, completion = counted["prompt_tokens"], counted["completion_tokens"]
    return {
        "input_tokens": prompt,
        "input_tokens_details": {
            "cached_tokens": counted["cached_tokens"],
            "cache_write_tokens": counted.get("cache_write_tokens", 0),
        },
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": counted.get("reasoning_tokens", reasoning_tokens)},
        "total_tokens": prompt + completion,
    }


def error(job: JobSummary, stored: dict[str, str] | None) -> dict[str, str] | None:
    """Convert the error in a log's last event. A cancel is not reported as an error."""
    if stored is None or stored["code"] == ErrorCode.CANCELLED:
        return None
    failure = rename_failure(job, Failure.of(stored))
    code = "invalid_prompt" if failure.code == ErrorCode.INVALID_REQUEST else "server_error"
    param = {} if failure.param is None else {"param": failure.param}
    return {"code": code, "message": failure.message, "type": failure.code, **param}
