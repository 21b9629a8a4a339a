"""The request of a job as a client would send it again, for the playground to load."""

from __future__ import annotations

from typing import Any

from api.console.message_body import message_body
from api.jobs.parameters import DEFAULT_PRIORITY
from shared.domain.job import Job
from shared.domain.request import ChatOptions, StructuredOutputs

# The name that OpenAI's API requires for a schema; jobs do not keep it.
SCHEMA_NAME = "answer"


def request_body(job: Job) -> dict[str, Any]:
    """The body of `POST /v1/jobs` for the same request."""
    request = job.request
    body: dict[str, Any] = {"model": job.requested_model or job.model}
    if request.messages is not None:
        body["messages"] = [message_body(message) for message in request.messages]
    else:
        body["prompt"] = request.prompt
    body |= request.sampling.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    if request.chat is not None:
        body |= _chat(request.chat)
    if request.structured_outputs is not None:
        body |= _structure(request.structured_outputs)
    for name in ("logprobs", "prompt_logprobs", "extra_body", "prompt_cache_key"):
        if (value := getattr(request, name)) is not None:
            body[name] = value
    if job.priority != DEFAULT_PRIORITY:
        body["priority"] = job.priority
    if job.owner.end_user is not None:
        body["user"] = job.owner.end_user
    return body


def _chat(chat: ChatOptions) -> dict[str, Any]:
    body = chat.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    if isinstance(chat.tool_choice, dict):
        body["tool_choice"] = {"type": "function", "function": {"name": chat.tool_choice["name"]}}
    return body


def _structure(structure: StructuredOutputs) -> dict[str, Any]:
    if structure.json_schema is not None:
        return {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": SCHEMA_NAME, "schema": structure.json_schema},
            }
        }
    if structure.json_object:
        return {"response_format": {"type": "json_object"}}
    return {"structured_outputs": structure.model_dump(mode="json", exclude_none=True)}
