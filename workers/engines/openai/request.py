"""A request as an OpenAI-compatible server takes it.

Only what was asked for is sent, since many servers refuse a parameter that they do not know. What OpenAI's API has
no name for goes under vLLM's.
"""

from __future__ import annotations

from typing import Any

from shared.domain.errors import InvalidRequest
from shared.domain.request import ChatOptions, GenerateRequest, StructuredOutputs

# OpenAI's API asks for a name; nobody sees it.
SCHEMA_NAME = "answer"


def asked(request: GenerateRequest, *, max_tokens_field: str) -> dict[str, Any]:
    """The body, but for the model and how it is streamed.

    Raises:
        InvalidRequest: it cannot be streamed, and so not be relayed.
    """
    if request.prompt_logprobs is not None:
        raise InvalidRequest(
            "prompt_logprobs: this model's answers are relayed from a stream, which has none; leave it out",
            param="prompt_logprobs",
        )
    body = request.sampling.model_dump(exclude_defaults=True, exclude={"max_tokens"})
    if request.prompt_only:
        body[max_tokens_field] = 0
    elif request.sampling.max_tokens is not None:
        body[max_tokens_field] = request.sampling.max_tokens
    if request.echo:
        body["echo"] = True
    if request.messages is None:
        body["prompt"] = request.prompt or ""
        if request.logprobs is not None:
            body["logprobs"] = request.logprobs
        if request.structured_outputs is not None:
            body["structured_outputs"] = _by_vllm(request.structured_outputs)
        return body
    body["messages"] = [message.model_dump(exclude_none=True) for message in request.messages]
    if request.logprobs is not None:
        body["logprobs"] = True
        if request.logprobs:
            body["top_logprobs"] = request.logprobs
    if request.structured_outputs is not None:
        body |= _format(request.structured_outputs)
    return body | _options(request.chat or ChatOptions())


def _format(wanted: StructuredOutputs) -> dict[str, Any]:
    if wanted.json_schema is not None:
        schema = {"name": SCHEMA_NAME, "schema": wanted.json_schema}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    if wanted.json_object:
        return {"response_format": {"type": "json_object"}}
    return {"structured_outputs": _by_vllm(wanted)}


def _by_vllm(wanted: StructuredOutputs) -> dict[str, Any]:
    fields = wanted.model_dump(exclude_none=True)
    return {("json" if name == "json_schema" else name): value for name, value in fields.items()}


def _options(chat: ChatOptions) -> dict[str, Any]:
    options = chat.model_dump(exclude_none=True, exclude_defaults=True)
    if chat.tools is not None:
        options["tools"] = [
            {"type": tool.type, "function": tool.function.model_dump(exclude_none=True)} for tool in chat.tools
        ]
    if isinstance(chat.tool_choice, dict):
        options["tool_choice"] = {"type": "function", "function": {"name": chat.tool_choice["name"]}}
    return options
