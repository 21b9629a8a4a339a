"""Converts a request into the input of a model.

Each model has inputs of its own; its spec names them. https://replicate.com/docs/reference/openapi has the schema of
the API; the inputs are in a model's version (`openapi_schema`).
"""

from __future__ import annotations

from typing import Any

from shared.config.models.replicate import ReplicateInput
from shared.domain.errors import InvalidRequest
from shared.domain.request import GenerateRequest, Message

_SYSTEM = ("system", "developer")
_NAMES = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


def model_input(request: GenerateRequest, names: ReplicateInput) -> dict[str, Any]:
    """The input of a model.

    Raises:
        InvalidRequest: the model takes no prompt as text.
    """
    values = dict(names.constants)
    sampling = request.sampling
    for parameter, name in names.parameters.items():
        value = getattr(sampling, parameter)
        if parameter == "stop":
            if value:
                values[name] = ",".join(value) if names.stop_as == "commas" else value
        elif value is not None and parameter in sampling.model_fields_set:
            values[name] = value
    if request.messages is None:
        if not isinstance(request.prompt, str):
            raise InvalidRequest("prompt: this model takes no token ids; send text", param="prompt")
        values[names.prompt] = request.prompt
        return values
    messages = request.messages
    if names.system_prompt is not None:
        system = [message.content for message in messages if message.role in _SYSTEM and message.content]
        messages = [message for message in messages if message.role not in _SYSTEM]
        if system:
            values[names.system_prompt] = "\n\n".join(system)
    if names.conversation == "messages":
        values[names.messages] = [{"role": message.role, "content": message.content or ""} for message in messages]
    else:
        values[names.prompt] = _RENDERERS[names.conversation](messages)
    return values


def _text(messages: list[Message]) -> str:
    """A single message of the user as it is; otherwise each with the name of its role."""
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content or ""
    lines = [f"{_NAMES[message.role]}: {message.content or ''}" for message in messages]
    return "\n\n".join([*lines, "Assistant:"])


def _llama3(messages: list[Message]) -> str:
    """https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3/"""
    turns = [
        f"<|start_header_id|>{'ipython' if message.role == 'tool' else _role(message)}<|end_header_id|>\n\n"
        f"{message.content or ''}<|eot_id|>"
        for message in messages
    ]
    return "<|begin_of_text|>" + "".join(turns) + "<|start_header_id|>assistant<|end_header_id|>\n\n"


def _chatml(messages: list[Message]) -> str:
    turns = [f"<|im_start|>{_role(message)}\n{message.content or ''}<|im_end|>\n" for message in messages]
    return "".join(turns) + "<|im_start|>assistant\n"


def _role(message: Message) -> str:
    return "system" if message.role == "developer" else message.role


_RENDERERS = {"text": _text, "llama3": _llama3, "chatml": _chatml}
