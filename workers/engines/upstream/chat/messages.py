"""Encodes messages as Chat Completions has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from shared.config.models.presets import Preset
from shared.domain.content import FilePart, ImagePart, TextPart
from shared.domain.errors import InvalidRequest
from shared.domain.request import Message, MessageToolCall
from shared.runtime.time_slice import TimeSlice
from workers.engines.upstream.call_arguments import NO_ARGUMENTS
from workers.engines.upstream.chat.call_ids import fitting_id
from workers.engines.upstream.chat.opaque import add_parts


async def encoded_messages(messages: Sequence[Message], server: Preset) -> orjson.Fragment:
    """Encode messages, of which there may be thousands, with time for other tasks in between.

    Raises:
        InvalidRequest: a part of a content cannot be expressed.
    """
    encoded = []
    exclude = None if server.reasoning_field == "reasoning" else {"reasoning"}
    slice_ = TimeSlice()
    for original in messages:
        message = _adapted(original, server)
        renames = message.reasoning and server.reasoning_field not in ("reasoning", None)
        if isinstance(message.content, list) or message.opaque or renames:
            encoded.append(orjson.dumps(_fields(message, server)).decode())
        else:
            encoded.append(message.model_dump_json(exclude_none=True, exclude=exclude))
        if slice_.over:
            await slice_.give_way()
    return orjson.Fragment(f"[{','.join(encoded)}]")


def _adapted(message: Message, server: Preset) -> Message:
    """The message with a role, ids of calls and arguments that the server takes."""
    changes: dict[str, Any] = {}
    if message.role == "developer" and not server.developer_role:
        changes["role"] = "system"
    length = server.call_id_length
    if (
        message.tool_call_id is not None
        and (call_id := fitting_id(message.tool_call_id, length)) != message.tool_call_id
    ):
        changes["tool_call_id"] = call_id
    if message.tool_calls:
        changes["tool_calls"] = [_adapted_call(call, length) for call in message.tool_calls]
    return message.model_copy(update=changes) if changes else message


def _adapted_call(call: MessageToolCall, length: int | None) -> MessageToolCall:
    function = call.function
    if not function.arguments.strip():  # some servers refuse what is not JSON
        function = function.model_copy(update={"arguments": NO_ARGUMENTS})
    call_id = fitting_id(call.id, length)
    if function is call.function and call_id == call.id:
        return call
    return call.model_copy(update={"id": call_id, "function": function})


def _fields(message: Message, server: Preset) -> dict[str, Any]:
    fields = message.model_dump(exclude_none=True, exclude={"content", "opaque", "reasoning"})
    if message.reasoning and server.reasoning_field is not None:
        fields[server.reasoning_field] = message.reasoning
    if message.media:
        assert isinstance(message.content, list)
        fields["content"] = [_part(part) for part in message.content]
    elif message.content is not None:
        fields["content"] = message.text
    if message.opaque and server.opaque is not None:
        add_parts(fields, message, server.opaque)
    return fields


def _part(part: TextPart | ImagePart | FilePart) -> dict[str, Any]:
    match part:
        case TextPart():
            return {"type": "text", "text": part.text}
        case ImagePart():
            if part.file_id is not None:
                raise InvalidRequest(
                    "messages: this model's API takes images as data or by URL, not by file id", param="messages"
                )
            detail = {} if part.detail is None else {"detail": part.detail}
            return {"type": "image_url", "image_url": {"url": _url(part), **detail}}
        case FilePart():
            file = {"file_id": part.file_id} if part.file_id is not None else {"file_data": _url(part)}
            if part.filename is not None:
                file["filename"] = part.filename
            return {"type": "file", "file": file}


def _url(part: ImagePart | FilePart) -> str:
    """The part's own URL, or its data as one."""
    return part.url if part.url is not None else f"data:{part.media_type};base64,{part.data}"
