"""Converts a request into the body of an OpenAI-compatible API.

Only parameters that the client set are sent, because many servers refuse unknown ones. A parameter that OpenAI's API
does not have is sent under vLLM's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from shared.config.models.presets import Preset
from shared.domain.errors import InvalidRequest
from shared.domain.request import ChatOptions, Function, GenerateRequest, Sampling, StructuredOutputs
from workers.engines.upstream.chat.messages import encoded_messages
from workers.engines.upstream.chat.prompt_caching import CACHE_KEYS, NO_CACHING, PromptCaching

# Required by OpenAI's API; not shown to anyone.
SCHEMA_NAME = "answer"
MAX_TOKENS_NAMES = ("max_tokens", "max_completion_tokens")
# Chat options that requests have only for models that can do them.
_ALWAYS_KNOWN = {"tools", "tool_choice", "continue_final_message"}
_DEFAULTS = {name: field.default for name, field in ChatOptions.model_fields.items()}


async def request_body(
    request: GenerateRequest, server: Preset, *, max_tokens_field: str, caching: PromptCaching = NO_CACHING
) -> dict[str, Any]:
    """The body without the model and the streaming options. Its values can be encoded by orjson only.

    Parameters that the server does not have are left out: admission has accepted only those without effect.

    Raises:
        InvalidRequest: the request cannot be streamed and therefore cannot be relayed.
    """
    if request.prompt_logprobs is not None:
        raise InvalidRequest(
            "prompt_logprobs: this model is relayed from a stream, which does not carry them; omit the parameter",
            param="prompt_logprobs",
        )
    body = _sampling(request.sampling, server)
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
            body |= _structure(request.structured_outputs, server)
        return {**body, **caching.members(request), **server.body}
    body["messages"] = await encoded_messages(request.messages, server)
    if request.logprobs is not None:
        body["logprobs"] = True
        if request.logprobs:
            body["top_logprobs"] = request.logprobs
    if request.structured_outputs is not None:
        body |= _response_format(request.structured_outputs) or _structure(request.structured_outputs, server)
    return {**body, **_options(request.chat or ChatOptions(), server), **caching.members(request), **server.body}


def optional_parameters(body: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The parameters of a body that an upstream may refuse, each with what replaces it without changing the answer."""
    optional: dict[str, Mapping[str, Any]] = {"stream_options": {}, **CACHE_KEYS}
    if body.get("tool_choice") == "auto":
        optional["tool_choice"] = {}
    if "messages" in body:
        for name, other in (MAX_TOKENS_NAMES, MAX_TOKENS_NAMES[::-1]):
            if name in body:
                optional[name] = {other: body[name]}
    return {name: replacement for name, replacement in optional.items() if name in body}


def _sampling(sampling: Sampling, server: Preset) -> dict[str, Any]:
    values = sampling.model_dump(exclude_defaults=True, exclude={"max_tokens"})
    known = server.capabilities.sampling
    return {
        server.renamed.get(name, name): value
        for name, value in values.items()
        if (name in known or name == "n") and value not in server.omitted.get(name, ())
    }


def _response_format(output: StructuredOutputs) -> dict[str, Any] | None:
    """What OpenAI's API has for chats: JSON."""
    if output.json_schema is not None:
        schema = {"name": SCHEMA_NAME, "schema": output.json_schema}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    if output.json_object:
        return {"response_format": {"type": "json_object"}}
    return None


def _structure(output: StructuredOutputs, server: Preset) -> dict[str, Any]:
    """A structured output under the server's names."""
    match server.structures:
        case "vllm":
            fields = output.model_dump(exclude_none=True)
            return {
                "structured_outputs": {
                    ("json" if name == "json_schema" else name): value for name, value in fields.items()
                }
            }
        case "sglang":
            if output.structural_tag is not None:
                return {"response_format": orjson.Fragment(output.structural_tag)}
            names = {"regex": output.regex, "ebnf": output.grammar}
            return {name: value for name, value in names.items() if value is not None} or _response_format(output) or {}
        case "tgi":
            if output.regex is not None:
                return {"response_format": {"type": "regex", "value": output.regex}}
            return _response_format(output) or {}


def _options(chat: ChatOptions, server: Preset) -> dict[str, Any]:
    known = server.capabilities.chat_options | _ALWAYS_KNOWN
    if server.hides_reasoning:
        known |= {"include_reasoning"}
    # Not by `model_dump`, which would copy schemas and documents.
    options = {name: value for name, value in chat if value is not None and value != _DEFAULTS[name] and name in known}
    if chat.tools is not None:
        options["tools"] = [{"type": tool.type, "function": _present(tool.function)} for tool in chat.tools]
    if isinstance(chat.tool_choice, dict):
        options["tool_choice"] = {"type": "function", "function": {"name": chat.tool_choice["name"]}}
    return options


def _present(function: Function) -> dict[str, Any]:
    return {name: value for name, value in function if value is not None}
