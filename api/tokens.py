"""Counts a prompt's tokens without torch: the model's tokenizer, and its chat template in Jinja's sandbox.

Used to refuse at submit what cannot fit. Where a model's files are not on this machine only max_tokens is looked
at, and the worker, whose own rendering is the authority, refuses instead.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from shared.errors import InvalidRequest
from shared.registry import ModelSpec, OpenAIModel, Registry, SimulatedModel
from shared.sampling import GenerateRequest

# A token of a byte-level tokenizer is at least one byte, so shorter prompts need no counting. A chat
# template adds a few dozen tokens to each conversation, and some to each message.
TEMPLATE_TOKENS = 256


class TokenCounter:
    """One model's tokenizer and template."""

    def __init__(self, folder: Path) -> None:
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
        self._template = environment.from_string(template) if isinstance(template, str) else None

    def count(self, request: GenerateRequest) -> int | None:
        """Tokens of the prompt; None where there is no template to render a conversation with."""
        if request.messages is None:
            if isinstance(request.prompt, list):
                return len(request.prompt)
            return len(self._tokenizer.encode(request.prompt or "").ids)
        if self._template is None:
            return None
        messages = [message.model_dump(exclude_none=True) for message in request.messages]
        try:
            text = self._template.render(messages=messages, add_generation_prompt=True, **self._special)
        except TemplateError as error:
            raise InvalidRequest(f"The model's chat template refuses this: {error}", param="messages") from error
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


class ContextCheck:
    """Refuses prompts that leave no room in their model's context."""

    def __init__(self, registry: Registry) -> None:
        self._limits = {name: model.max_model_len for name, model in registry.models.items()}
        self._counters = {name: _counter(model) for name, model in registry.models.items()}

    async def check(self, model: str, request: GenerateRequest) -> None:
        """Raise `InvalidRequest` where prompt and max_tokens together do not fit."""
        limit, count = self._limits[model], self._counters[model]
        if limit is None:
            return
        wanted = request.sampling.max_tokens
        param = "messages" if request.messages is not None else "prompt"
        if wanted is not None and wanted >= limit:
            raise InvalidRequest(
                f"max_tokens: this model's context is {limit} tokens, prompt included; got {wanted}",
                param="max_tokens",
            )
        if count is None:
            return
        size = _bytes(request)
        if size + TEMPLATE_TOKENS + (wanted or 1) <= limit:
            return
        tokens = await asyncio.to_thread(count, request) if size > 20_000 else count(request)
        if tokens is not None and tokens + (wanted or 1) > limit:
            raise InvalidRequest(
                f"{param}: this model's context is {limit} tokens; the prompt has {tokens}"
                f"{f' and max_tokens asks for {wanted}' if wanted else ''}",
                param=param,
            )


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
    return TokenCounter(folder).count


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


def _raise(message: str) -> Any:
    raise TemplateError(message)
