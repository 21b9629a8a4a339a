"""Converts a request into the body that creates a response.

https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import orjson

from shared.domain.content import FilePart, ImagePart, TextPart
from shared.domain.errors import InvalidRequest
from shared.domain.opaque import OpaquePart, Reasoning
from shared.domain.request import ChatOptions, GenerateRequest, Message, MessageToolCall, StructuredOutputs, Tool
from shared.runtime.time_slice import TimeSlice
from workers.engines.openai.responses.reasoning import reasoning_item
from workers.engines.upstream.chat.call_ids import RESPONSES_LENGTH, fitting_id
from workers.engines.upstream.chat.prompt_caching import CACHE_KEYS

# Required by the API; not shown to anyone.
SCHEMA_NAME = "answer"
ENCRYPTED_REASONING = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


async def response_body(request: GenerateRequest, *, provider: str | None, summary: str | None) -> dict[str, Any]:
    """The body without the model. Its values can be encoded by orjson only.

    `provider`: the origin of its opaque parts. `summary`: the summary of the reasoning that the model's entry requests.

    Raises:
        InvalidRequest: the API cannot express the request.
    """
    if request.messages is None:
        raise InvalidRequest("prompt: this model takes conversations only, so send messages", param="prompt")
    chat, sampling = request.chat or ChatOptions(), request.sampling
    instructions, messages = _instructions(request.messages)
    body: dict[str, Any] = {
        "input": await _items(messages),
        "background": True,
        "stream": True,
        "store": True,
        "stream_options": {"include_obfuscation": False},
    }
    if instructions is not None:
        body["instructions"] = instructions
    if sampling.max_tokens is not None:
        body["max_output_tokens"] = sampling.max_tokens
    body |= sampling.model_dump(include={"temperature", "top_p"}, exclude_defaults=True)
    includes = [] if provider is None else [ENCRYPTED_REASONING]
    if request.logprobs is not None:
        includes.append(LOGPROBS)
        body["top_logprobs"] = request.logprobs
    if includes:
        body["include"] = includes
    reasoning = {"effort": chat.reasoning_effort, "summary": summary if chat.include_reasoning else None}
    if reasoning := {name: value for name, value in reasoning.items() if value is not None}:
        body["reasoning"] = reasoning
    if request.structured_outputs is not None:
        body["text"] = {"format": _format(request.structured_outputs)}
    if chat.tools:
        body["tools"] = [_tool(tool) for tool in chat.tools]
        if chat.tool_choice is not None:
            body["tool_choice"] = _tool_choice(chat.tool_choice)
        if not chat.parallel_tool_calls:
            body["parallel_tool_calls"] = False
    return body


def optional_parameters(body: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The parameters of a body that a server may refuse, each with what replaces it without changing the answer."""
    optional: dict[str, Mapping[str, Any]] = {"stream_options": {}, **CACHE_KEYS}
    if ENCRYPTED_REASONING in body.get("include", ()):  # models that do not reason refuse it
        others = [name for name in body["include"] if name != ENCRYPTED_REASONING]
        optional["include"] = {"include": others} if others else {}
    return {name: replacement for name, replacement in optional.items() if name in body}


def _instructions(messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
    """A system message at the start, and the messages after it."""
    if len(messages) > 1 and messages[0].role == "system" and isinstance(messages[0].content, str):
        return messages[0].content, messages[1:]
    return None, messages


async def _items(messages: Sequence[Message]) -> orjson.Fragment:
    """Encode the items for messages, of which there may be thousands, with time for other tasks in between."""
    encoded: list[bytes] = []
    slice_ = TimeSlice()
    for message in messages:
        encoded += map(orjson.dumps, _items_of(message))
        if slice_.over:
            await slice_.give_way()
    return orjson.Fragment(b"[%b]" % b",".join(encoded))


def _items_of(message: Message) -> Iterator[dict[str, Any]]:
    if message.role == "tool":
        yield {
            "type": "function_call_output",
            "call_id": _call_id(message.tool_call_id or ""),
            "output": _content(message),
        }
        return
    if message.role != "assistant":
        if message.name is not None:
            raise InvalidRequest("messages: this model's API has no names of participants", param="messages")
        yield {"role": message.role, "content": _content(message)}
        return
    for item in message.in_order():
        match item:
            case Reasoning():  # without its part, the provider does not accept it
                pass
            case str():
                yield {"role": "assistant", "content": item}
            case MessageToolCall():
                call = {"call_id": _call_id(item.id), "name": item.function.name, "arguments": item.function.arguments}
                yield {"type": "function_call", **call}
            case OpaquePart():
                if (reasoning := reasoning_item(item)) is not None:
                    yield reasoning


def _call_id(call_id: str) -> str:
    return fitting_id(call_id, RESPONSES_LENGTH)


def _content(message: Message) -> str | list[dict[str, Any]]:
    if isinstance(message.content, list):
        return [_part(part) for part in message.content]
    return message.content or ""


def _part(part: TextPart | ImagePart | FilePart) -> dict[str, Any]:
    match part:
        case TextPart():
            return {"type": "input_text", "text": part.text}
        case ImagePart():
            source = {"file_id": part.file_id} if part.file_id is not None else {"image_url": _url(part)}
            return {"type": "input_image", "detail": part.detail or "auto", **source}
        case FilePart():
            if part.file_id is not None:
                source = {"file_id": part.file_id}
            else:
                source = {"file_url": part.url} if part.url is not None else {"file_data": _url(part)}
            name = part.filename or ("document" if "file_data" in source else None)
            return {"type": "input_file", **source} | ({} if name is None else {"filename": name})


def _url(part: ImagePart | FilePart) -> str:
    """The part's own URL, or its data as one."""
    return part.url if part.url is not None else f"data:{part.media_type};base64,{part.data}"


def _format(output: StructuredOutputs) -> dict[str, Any]:
    if output.json_schema is not None:
        return {"type": "json_schema", "name": SCHEMA_NAME, "schema": output.json_schema}
    if output.json_object:
        return {"type": "json_object"}
    raise InvalidRequest(
        "structured_outputs: this model's API has json_schema and json_object only", param="structured_outputs"
    )


def _tool(tool: Tool) -> dict[str, Any]:
    """A tool. The API's own default is a strict one."""
    function = tool.function
    described = {} if function.description is None else {"description": function.description}
    parameters = _NO_PARAMETERS if function.parameters is None else function.parameters
    return {
        "type": "function",
        "name": function.name,
        **described,
        "parameters": parameters,
        "strict": bool(function.strict),
    }


def _tool_choice(choice: str | Mapping[Literal["name"], str]) -> str | dict[str, str]:
    return choice if isinstance(choice, str) else {"type": "function", "name": choice["name"]}
