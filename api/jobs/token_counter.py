"""Counts a prompt's tokens without torch: with the model's tokenizer, and its chat template in Jinja's sandbox."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from shared.domain.errors import InvalidRequest
from shared.domain.request import ChatOptions, GenerateRequest

logger = logging.getLogger(__name__)

# Chat options that change the rendered prompt.
_PROMPT_OPTIONS = ChatOptions.model_fields.keys() - {"tool_choice", "parallel_tool_calls", "include_reasoning"}


class TokenCounter:
    """Counts tokens with one model's tokenizer and chat template."""

    def __init__(self, folder: Path, *, renders_chat: bool = True) -> None:
        """`renders_chat`: see `shared.config.models.base.TokenizerFiles`."""
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        template_file = folder / "chat_template.jinja"
        template = template_file.read_text() if template_file.is_file() else config.get("chat_template")
        self._special = {
            name: value["content"] if isinstance(value, dict) else value
            for name, value in config.items()
            if name.endswith("_token") and value
        }
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals["raise_exception"] = _raise
        environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
        self._template = environment.from_string(template) if isinstance(template, str) and renders_chat else None

    def count(self, request: GenerateRequest) -> int | None:
        """Count the tokens of a prompt; None if its conversation cannot be rendered exactly as by the worker."""
        if request.messages is None:
            if isinstance(request.prompt, list):
                return len(request.prompt)
            return len(self._tokenizer.encode(request.prompt or "").ids)
        if self._template is None or not _is_plain(request):
            return None
        messages = [message.model_dump(exclude_none=True) for message in request.messages]
        try:
            text = self._template.render(messages=messages, add_generation_prompt=True, **self._special)
        except (_TemplateError, SecurityError) as error:
            raise InvalidRequest(
                f"The model's chat template rejects the conversation: {error}", param="messages"
            ) from error
        except Exception as error:  # the template needs something that only the engine provides
            logger.warning("cannot render the chat template outside the engine: %s", error)
            return None
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def count_words(request: GenerateRequest) -> int:
    """Count the tokens of a prompt for a model whose tokens are words, as `workers.engines.simulated.engine` does."""
    if isinstance(request.prompt, list):
        return len(request.prompt)
    if request.messages is None:
        return len((request.prompt or "").split()) + 1
    return len("\n".join(f"{item.role}: {item.content or ''}" for item in request.messages).split()) + 1


class _TemplateError(TemplateError):
    """The template called `raise_exception`."""


def _raise(message: str) -> Any:
    raise _TemplateError(message)


def _is_plain(request: GenerateRequest) -> bool:
    """Whether the conversation consists of text messages only."""
    other_options = request.chat is not None and _PROMPT_OPTIONS & request.chat.model_fields_set
    return not other_options and all(
        item.content is not None and not (item.tool_calls or item.tool_call_id or item.reasoning)
        for item in request.messages or ()
    )
