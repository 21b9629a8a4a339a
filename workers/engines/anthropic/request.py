"""Converts a request into the body of Anthropic's Messages API.

https://platform.claude.com/docs/en/api/messages
"""

from __future__ import annotations

from typing import Any

import orjson

from shared.config.models.anthropic import AnthropicModel
from shared.config.models.claude_rules import output_limit
from shared.domain.errors import InvalidRequest
from shared.domain.request import ChatOptions, GenerateRequest, Sampling, Tool
from shared.runtime.time_slice import TimeSlice
from workers.engines.anthropic.caching import place_breakpoints
from workers.engines.anthropic.continuation import FROM_START, Continuation
from workers.engines.anthropic.messages import Conversation, cache_control, conversation
from workers.engines.anthropic.thinking import thinking

# Parameters of the API, and those that have no effect on it. Everything else cannot be relayed.
_SAMPLING = {"max_tokens", "stop", "temperature", "top_p", "top_k", "thinking_token_budget"}
_CHAT_OPTIONS = {
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "reasoning_effort",
    "include_reasoning",
    "continue_final_message",
}
_DEFAULT_OPTIONS = ChatOptions()
_DEFAULT_SAMPLING = Sampling()


async def request_body(
    request: GenerateRequest, model: AnthropicModel, so_far: Continuation = FROM_START
) -> dict[str, Any]:
    """The body of a streamed request for the answer, or its rest. Its values can be encoded by orjson only.

    Raises:
        InvalidRequest: the API cannot express it.
    """
    chat = request.chat or _DEFAULT_OPTIONS
    _check(request, chat, model)
    max_tokens = output_limit(request, model.default_max_tokens)
    body: dict[str, Any] = dict(request.extra_body or {})
    body |= {"model": model.model, "stream": True, "max_tokens": max(1, max_tokens - so_far.fewest_tokens)}
    body |= _sampling(request.sampling)
    body |= thinking(request, model.limits, max_tokens)
    tools = [_tool(tool) for tool in chat.tools or ()]
    turns = await conversation(request.messages or (), request.cache_breakpoints, request.tool_errors)
    if not turns.turns or (turns.turns[-1].role == "assistant" and not chat.continue_final_message):
        raise InvalidRequest("messages: for this model, the last message must be the user's", param="messages")
    for mark in request.cache_breakpoints:
        if mark.tool is not None and mark.tool < len(tools):
            tools[mark.tool]["cache_control"] = cache_control(mark.ttl)
    if not request.cache_breakpoints and model.options.prompt_caching == "auto":
        place_breakpoints(tools, turns, model.limits.min_cache_tokens)
    turns.prefill(so_far.text)
    if tools:
        body |= {"tools": tools} | _tool_choice(chat)
    if (output := request.structured_outputs) is not None:
        config = {"format": {"type": "json_schema", "schema": output.json_schema}}
        body["output_config"] = body.get("output_config", {}) | config
    if turns.system:
        body["system"] = turns.system
    body["messages"] = await _encoded(turns)
    return body


def _check(request: GenerateRequest, chat: ChatOptions, model: AnthropicModel) -> None:
    """Refuse what the API does not have. Admission does this too, but the model may have changed since."""

    def refuse(param: str, reason: str = "this model does not support the parameter") -> InvalidRequest:
        return InvalidRequest(f"{param}: {reason}", param=param)

    if request.messages is None:
        raise refuse("prompt", "this model accepts conversations only; send messages")
    for position, message in enumerate(request.messages):
        if message.name is not None and message.role != "tool":
            raise refuse(f"messages[{position}].name")
    for name in ("logprobs", "prompt_logprobs"):
        if getattr(request, name) is not None:
            raise refuse(name)
    if request.echo:
        raise refuse("echo")
    for name, value in request.sampling:
        if name not in _SAMPLING and value != getattr(_DEFAULT_SAMPLING, name):
            raise refuse(name)
    for name, value in chat:
        if name == "add_generation_prompt" and chat.continue_final_message:
            continue  # required with it
        if name not in _CHAT_OPTIONS and value != getattr(_DEFAULT_OPTIONS, name):
            raise refuse(name)
    if (output := request.structured_outputs) is not None and (
        output.json_schema is None or not model.options.structured_outputs
    ):
        raise refuse("structured_outputs", "this model accepts JSON Schemas only, if any")
    for param, what in model.unsupported(request):
        raise refuse(param, f"this model does not support {what}")


def _sampling(sampling: Sampling) -> dict[str, Any]:
    values: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    values = {name: value for name, value in values.items() if value is not None and value != 1}
    if sampling.top_k is not None and sampling.top_k > 0:
        values["top_k"] = sampling.top_k
    return values | ({"stop_sequences": sampling.stop} if sampling.stop else {})


def _tool(tool: Tool) -> dict[str, Any]:
    function = tool.function
    schema = function.parameters or {}
    body: dict[str, Any] = {"name": function.name, "input_schema": {"type": "object"} | schema}
    if function.description:
        body["description"] = function.description
    if function.strict:
        body["strict"] = True
    return body


def _tool_choice(chat: ChatOptions) -> dict[str, Any]:
    match chat.tool_choice:
        case "none":
            return {"tool_choice": {"type": "none"}}
        case "required":
            choice = {"type": "any"}
        case {"name": name}:
            choice = {"type": "tool", "name": name}
        case _:
            choice = {"type": "auto"}
    parallel = {} if chat.parallel_tool_calls else {"disable_parallel_tool_use": True}
    return {"tool_choice": choice | parallel} if parallel or choice != {"type": "auto"} else {}


async def _encoded(turns: Conversation) -> orjson.Fragment:
    """Encode the turns with time for other tasks in between."""
    encoded = []
    slice_ = TimeSlice()
    for turn in turns.turns:
        encoded.append(orjson.dumps({"role": turn.role, "content": turn.blocks}))
        if slice_.over:
            await slice_.give_way()
    return orjson.Fragment(b"[%b]" % b",".join(encoded))
