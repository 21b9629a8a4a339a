"""Counts a prompt's tokens without torch: the model's tokenizer, and its chat template in Jinja's sandbox.

Used to refuse at submit what cannot fit. Where a model's files are not on this machine, or a conversation has more
than turns of text (tools, documents, a last message to go on with), only max_tokens is looked at, and the worker,
whose own rendering is the authority, refuses instead.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from shared.errors import InvalidRequest
from shared.registry import ModelSpec, OpenAIModel, Registry, SimulatedModel
from shared.sampling import ChatOptions, GenerateRequest

# A token of a byte-level tokenizer is at least one byte, so shorter prompts need no counting. A chat
# template adds a few dozen tokens to each conversation, and some to each message.
TEMPLATE_TOKENS = 256
# What changes a prompt beside its messages.
_RENDERED = ChatOptions.model_fields.keys() - {"tool_choice", "parallel_tool_calls", "include_reasoning"}

logger = logging.getLogger(__name__)


class TokenCounter:
    """One model's tokenizer and template."""

    def __init__(self, folder: Path, *, as_it_is: bool = True) -> None:
        """`as_it_is`: whether the model's own template renders conversations, without variables of ours."""
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
        self._template = environment.from_string(template) if isinstance(template, str) and as_it_is else None

    def count(self, request: GenerateRequest) -> int | None:
        """Tokens of the prompt; None where a conversation cannot be rendered as the worker will."""
        if request.messages is None:
            if isinstance(request.prompt, list):
                return len(request.prompt)
            return len(self._tokenizer.encode(request.prompt or "").ids)
        if self._template is None or not _is_plain(request):
            return None
        messages = [message.model_dump(exclude_none=True) for message in request.messages]
        try:
            text = self._template.render(messages=messages, add_generation_prompt=True, **self._special)
        except (_Refused, SecurityError) as error:
            raise InvalidRequest(f"The model's chat template refuses this: {error}", param="messages") from error
        except Exception as error:  # it counts on something that is not here
            logger.warning("a chat template cannot be rendered without its engine: %s", error)
            return None
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


class ContextCheck:
    """Refuses prompts that leave no room in their model's context."""

    def __init__(self, registry: Registry) -> None:
        self._limits = {name: model.max_model_len for name, model in registry.models.items()}
        self._counters = {name: _counter(model) for name, model in registry.models.items()}

    async def check(self, model: str, request: GenerateRequest) -> None:
        """Raise `InvalidRequest` where the prompt leaves no room, or max_tokens is more than there ever is.

        As in vLLM, an answer whose max_tokens is more than the prompt leaves may fill the context, and no more.
        """
        limit, count = self._limits[model], self._counters[model]
        if limit is None:
            return
        wanted = request.sampling.max_tokens
        param = "messages" if request.messages is not None else "prompt"
        if wanted is not None and wanted > limit:
            raise InvalidRequest(
                f"max_tokens: this model's context is {limit} tokens, prompt and answer together; got {wanted}",
                param="max_tokens",
            )
        if count is None:
            return
        size = _bytes(request)
        if size + TEMPLATE_TOKENS < limit:
            return
        tokens = await asyncio.to_thread(count, request) if size > 20_000 else count(request)
        if tokens is not None and tokens >= limit:
            raise InvalidRequest(
                f"{param}: this model's context is {limit} tokens, prompt and answer together; the prompt has {tokens}",
                param=param,
            )

    async def count(self, model: str, request: GenerateRequest) -> int:
        """Tokens of a prompt.

        Raises:
            InvalidRequest: they cannot be counted here, or the model's template refuses the prompt.
        """
        count = self._counters[model]
        tokens = await asyncio.to_thread(count, request) if count is not None else None
        if tokens is None:
            raise InvalidRequest(
                f"The tokens of `{model}` cannot be counted here: this process lacks its tokenizer or chat template,"
                " or tools, calls or a turn to go on with make the prompt what the engine alone can render.",
                param="model",
            )
        return tokens


def _counter(model: ModelSpec) -> Callable[[GenerateRequest], int | None] | None:
    if isinstance(model, SimulatedModel):
        return simulated_tokens
    if isinstance(model, OpenAIModel):
        return None
    folder = model.folder
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    if not (folder / "tokenizer_config.json").is_file():
        return None
    as_it_is = model.chat.chat_template is None and not model.chat.default_chat_template_kwargs
    return TokenCounter(folder, as_it_is=as_it_is).count


def simulated_tokens(request: GenerateRequest) -> int:
    """The simulated engine's tokens are words; see `workers.engines.simulated`."""
    if isinstance(request.prompt, list):
        return len(request.prompt)
    if request.messages is None:
        return len((request.prompt or "").split()) + 1
    return len("\n".join(f"{item.role}: {item.content or ''}" for item in request.messages).split()) + 1


def _bytes(request: GenerateRequest) -> int:
    if isinstance(request.prompt, list):
        return len(request.prompt)
    if request.messages is None:
        return len((request.prompt or "").encode("utf-8", "surrogatepass"))
    return sum(len((item.content or "").encode("utf-8", "surrogatepass")) + 32 for item in request.messages)


class _Refused(TemplateError):
    """The template itself said no."""


def _raise(message: str) -> Any:
    raise _Refused(message)


def _is_plain(request: GenerateRequest) -> bool:
    """Whether the prompt is turns of text and nothing else."""
    beside = request.chat is not None and _RENDERED & request.chat.model_fields_set
    return not beside and all(
        item.content is not None and not (item.tool_calls or item.tool_call_id or item.reasoning)
        for item in request.messages or ()
    )
