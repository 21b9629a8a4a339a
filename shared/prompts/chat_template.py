"""Renders conversations with a model's chat template, in Jinja's sandbox and without the model's libraries."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shared.domain.errors import InvalidRequest
from shared.domain.request import ChatOptions, GenerateRequest, Message, Tool

logger = logging.getLogger(__name__)

# Chat options that change the rendered prompt in ways that only the engine knows.
_ENGINE_OPTIONS = ChatOptions.model_fields.keys() - {
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "include_reasoning",
}


class ChatTemplate:
    """One template, with the names of the model's special tokens (`bos_token`) as variables."""

    def __init__(self, text: str, special_tokens: Mapping[str, str]) -> None:
        """Raises TemplateSyntaxError if the text is not a template, or uses an extension that only the engine has."""
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals["raise_exception"] = _raise
        environment.filters["tojson"] = _to_json
        self._template = environment.from_string(text)
        self.special_tokens = special_tokens

    def render(self, request: GenerateRequest) -> str | None:
        """The prompt of a conversation; None if it cannot be rendered here exactly as by an engine.

        Raises:
            InvalidRequest: the template rejects the conversation.
        """
        if not _is_renderable(request):
            return None
        messages = [_template_message(message) for message in request.messages or ()]
        tools = request.chat.tools if request.chat is not None else None
        try:
            return self._template.render(
                messages=messages,
                tools=[_template_tool(tool) for tool in tools] if tools else None,
                documents=None,
                add_generation_prompt=True,
                **self.special_tokens,
            )
        except (_TemplateError, SecurityError) as error:
            raise InvalidRequest(
                f"The model's chat template rejects the conversation: {error}", param="messages"
            ) from error
        except Exception as error:  # the template needs something that only the engine provides
            logger.warning("cannot render the chat template outside the engine: %s", error)
            return None


def model_template(folder: Path | None, file: Path | None = None) -> ChatTemplate | None:
    """The template in a model's folder, or the one in `file` instead; None if there is none that can be read.

    `folder`: has `tokenizer_config.json`, with the special tokens.
    """
    config = json.loads((folder / "tokenizer_config.json").read_text()) if folder is not None else {}
    if file is None and folder is not None and (folder / "chat_template.jinja").is_file():
        file = folder / "chat_template.jinja"
    text = file.read_text() if file is not None else config.get("chat_template")
    if not isinstance(text, str):
        return None
    special_tokens = {
        name: value["content"] if isinstance(value, dict) else value
        for name, value in config.items()
        if name.endswith("_token") and value
    }
    try:
        return ChatTemplate(text, special_tokens)
    except TemplateSyntaxError as error:  # the template uses an extension that only the engine has
        logger.warning("cannot read the chat template outside the engine: %s", error)
        return None


def with_system_roles(request: GenerateRequest) -> GenerateRequest:
    """The request with instructions of developers as those of the system, which templates know."""
    messages = request.messages or []
    if all(message.role != "developer" for message in messages):
        return request
    renamed: list[Message] = [
        message.model_copy(update={"role": "system"}) if message.role == "developer" else message
        for message in messages
    ]
    return request.model_copy(update={"messages": renamed})


class _TemplateError(TemplateError):
    """The template called `raise_exception`."""


def _raise(message: str) -> Any:
    raise _TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson` of the transformers library."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _is_renderable(request: GenerateRequest) -> bool:
    """Whether the conversation can be rendered here. Only engines know which templates support developer messages."""
    chat = request.chat or ChatOptions()
    default = ChatOptions()
    return all(message.role != "developer" for message in request.messages or ()) and all(
        getattr(chat, option) == getattr(default, option) for option in _ENGINE_OPTIONS & chat.model_fields_set
    )


def _template_message(message: Message) -> dict[str, Any]:
    """A message as vLLM passes it to chat templates: the arguments of calls are objects, and the content is a text."""
    fields = {**message.model_dump(exclude_none=True, exclude={"content", "opaque"}), "content": message.text}
    if "reasoning" in fields:
        fields["reasoning_content"] = fields["reasoning"]
    for call in fields.get("tool_calls", ()):
        call["function"]["arguments"] = _arguments(call["function"]["arguments"])
    return fields


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text) if text else {}
    except ValueError:
        return {}
    return arguments if isinstance(arguments, dict) else {}


def _template_tool(tool: Tool) -> dict[str, Any]:
    """A tool as vLLM passes it to chat templates."""
    function = tool.function.model_dump()
    if function["strict"] is None:
        del function["strict"]
    return {"type": tool.type, "function": function}
