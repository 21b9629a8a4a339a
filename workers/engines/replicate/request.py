"""Converts a request into the input of a model.

Each model has inputs of its own; its spec names them. https://replicate.com/docs/reference/openapi has the schema of
the API; the inputs are in a model's version (`openapi_schema`).
"""

from __future__ import annotations

import asyncio
from typing import Any

from shared.config.models.replicate import ReplicateInput
from shared.domain.errors import InvalidRequest
from shared.domain.request import GenerateRequest, Message, Sampling
from shared.prompts.chat_template import ChatTemplate, with_system_roles

_SYSTEM = ("system", "developer")
_NAMES = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


async def model_input(
    request: GenerateRequest, names: ReplicateInput, template: ChatTemplate | None = None
) -> dict[str, Any]:
    """The input of a model. `template` renders its conversations, if it takes them as text with markers.

    Raises:
        InvalidRequest: the model's input cannot express the request.
    """
    values = {**(request.extra_body or {}), **names.constants}
    for parameter, name in names.parameters.items():
        value = getattr(request.sampling, parameter)
        if value != Sampling.model_fields[parameter].get_default(call_default_factory=True):
            values[name] = _stop(value, names) if parameter == "stop" else value
    if request.messages is None:
        if not isinstance(request.prompt, str):
            raise InvalidRequest("prompt: this model takes no token ids; send text", param="prompt")
        values[names.prompt] = request.prompt
        return values
    if any(message.media for message in request.messages):
        raise InvalidRequest("messages: this model takes text only; omit images and files", param="messages")
    if template is not None:
        prompt = await asyncio.to_thread(template.render, with_system_roles(request))
        if prompt is None:
            raise InvalidRequest("messages: the model's template cannot render this conversation", param="messages")
        values[names.prompt] = prompt
        return values
    messages = request.messages
    if names.system_prompt is not None:
        system = [message.text for message in messages if message.role in _SYSTEM and message.text]
        messages = [message for message in messages if message.role not in _SYSTEM]
        if system:
            values[names.system_prompt] = "\n\n".join(system)
    if names.conversation == "messages":
        values[names.messages] = [{"role": message.role, "content": message.text} for message in messages]
    else:
        values[names.prompt] = _text(messages)
    return values


def _stop(strings: list[str], names: ReplicateInput) -> str | list[str]:
    if names.stop_as == "list":
        return strings
    if any("," in text for text in strings):
        raise InvalidRequest("stop: this model takes its stop strings separated by commas; omit commas", param="stop")
    return ",".join(strings)


def _text(messages: list[Message]) -> str:
    """A single message of the user as it is; otherwise each with the name of its role."""
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].text
    lines = [f"{_NAMES[message.role]}: {message.text}" for message in messages]
    return "\n\n".join([*lines, "Assistant:"])
