"""Checks `warm_prompts` before the engine is loaded: files must be readable, and texts must fit the context."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from shared.config.models.base import RegistryError, TokenizerFiles
from shared.config.models.loader import errors_at
from shared.config.models.vllm import VllmModel
from shared.config.models.warm_prompts import WarmPrompt
from shared.prompts.token_counter import TokenCounter


def check_warm_prompts(path: Path, model: VllmModel) -> None:
    """Check the prompts of a model's entry in the file at `path`.

    Texts are counted if the model's tokenizer and context are known without its engine.

    Raises:
        RegistryError: a file cannot be read, or a text is too long; the message names the line and the field.
    """
    problems = [
        (("warm_prompts", position, field), message)
        for position, entry in enumerate(model.warm_prompts)
        for field, message in _problems(model, entry)
    ]
    if problems:
        raise RegistryError(errors_at(path, model.name, problems))


def _problems(model: VllmModel, entry: WarmPrompt) -> Iterator[tuple[str, str]]:
    """The field of each problem of an entry, and a message."""
    field = "file" if entry.file is not None else "text" if entry.text is not None else "messages"
    try:
        text = entry.content
    except OSError as error:
        yield field, f"{entry.file} cannot be read ({error.strerror})"
        return
    except UnicodeDecodeError:
        yield field, f"{entry.file} is not UTF-8"
        return
    if field == "file" and not text:
        yield field, f"{entry.file} is empty"
        return
    text = text or "\n".join(message.text for message in entry.messages or ())
    context, tokenizer = model.max_model_len, model.prompt_tokenizer
    # A token stands for at least one byte, so short texts need not be counted.
    if context is None or len(text.encode()) < context or not isinstance(tokenizer, TokenizerFiles):
        return
    tokens = TokenCounter(tokenizer.folder, renders_chat=False).count_text(text, limit=context)
    if tokens >= context:
        yield field, f"has at least {tokens} tokens, but the context of the model is {context}"
