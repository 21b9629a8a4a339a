"""Checks the usage that a provider has reported against the sizes of the request and of the answer.

Providers count with tokenizers of their own, so their numbers are used as they are. But a token has at least one byte,
and hardly more than two words: numbers that no tokenizer can result in are pointed out, and kept beside our own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from shared.domain.job import Choice, Usage
from shared.domain.request import GenerateRequest

# Bytes of a token of common tokenizers, about: for our own numbers.
BYTES = 4
# Words of a token, at most.
WORDS = 2
# Numbers that differ by less are no disagreement: providers add tokens of templates, and instructions for tools.
TOLERATED = 1000


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Our own numbers of tokens, about, and which of those that the provider has reported cannot be right."""

    input_tokens: int
    output_tokens: int
    parts: tuple[str, ...]

    def stored(self) -> dict[str, int]:
        """The form in the ledger."""
        return {"input": self.input_tokens, "output": self.output_tokens}


def disagreement(request: GenerateRequest, choices: Sequence[Choice], usage: Usage) -> Disagreement | None:
    """What disagrees with the usage that a provider has reported for a complete answer; None if nothing does."""
    if request.echo:  # the answer has the prompt too
        return None
    input_bytes, input_words = _measured(_input_texts(request))
    output_bytes, output_words = _measured(_output_texts(choices))
    ids = request.prompt if isinstance(request.prompt, list) else ()
    parts = []
    # Token ids, and the tokens of images and files, have no bytes to compare with.
    most = request.prompt_bytes
    too_few = usage.prompt_tokens < max(input_words // WORDS, len(ids)) - TOLERATED
    if too_few or (most is not None and usage.prompt_tokens > most + TOLERATED):
        parts.append("input")
    # Reasoning that is summarized or encrypted has more tokens than what there is of it.
    is_whole = not any(choice.reasoning or choice.opaque for choice in choices)
    visible = usage.completion_tokens - usage.reasoning_tokens
    too_few = usage.completion_tokens < output_words // WORDS - TOLERATED
    if too_few or (is_whole and visible > output_bytes + TOLERATED):
        parts.append("output")
    own_input = len(ids) or -(-input_bytes // BYTES)
    return Disagreement(own_input, -(-output_bytes // BYTES), tuple(parts)) if parts else None


def _measured(texts: Iterable[str]) -> tuple[int, int]:
    """The bytes and the words of texts."""
    size = words = 0
    for text in texts:
        size += len(text) if text.isascii() else len(text.encode(errors="replace"))
        words += text.count(" ")
    return size, words


def _input_texts(request: GenerateRequest) -> Iterator[str]:
    if isinstance(request.prompt, str):
        yield request.prompt
    for message in request.messages or ():
        yield from message.texts


def _output_texts(choices: Sequence[Choice]) -> Iterator[str]:
    for choice in choices:
        yield choice.text
        yield choice.reasoning or ""
        for call in choice.tool_calls:
            yield call.name
            yield call.arguments
