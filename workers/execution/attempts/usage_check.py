"""Checks the usage that a provider has reported against the sizes of the request and of the answer.

Providers count with tokenizers of their own, so their numbers are used as they are. But a token has at least one byte,
and hardly more than two words: numbers that no tokenizer can result in are pointed out, and kept beside our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    inputs, outputs = list(_input_texts(request)), list(_output_texts(choices))
    input_bytes, output_bytes = _bytes(inputs), _bytes(outputs)
    ids = request.prompt if isinstance(request.prompt, list) else ()
    parts = []
    # Token ids, and the tokens of images and files, have no bytes to compare with.
    most = request.prompt_bytes
    too_few = _are_too_few(usage.prompt_tokens, inputs) or usage.prompt_tokens < len(ids) - TOLERATED
    if too_few or (most is not None and usage.prompt_tokens > most + TOLERATED):
        parts.append("input")
    # Reasoning that is summarized or encrypted has more tokens than what there is of it.
    is_whole = not any(choice.reasoning or choice.opaque for choice in choices)
    visible = usage.completion_tokens - usage.reasoning_tokens
    too_few = _are_too_few(usage.completion_tokens, outputs)
    if too_few or (is_whole and visible > output_bytes + TOLERATED):
        parts.append("output")
    own_input = len(ids) or -(-input_bytes // BYTES)
    return Disagreement(own_input, -(-output_bytes // BYTES), tuple(parts)) if parts else None


def _bytes(texts: Sequence[str]) -> int:
    return sum(len(text) if text.isascii() else len(text.encode(errors="replace")) for text in texts)


def _are_too_few(tokens: int, texts: Sequence[str]) -> bool:
    """Whether texts have more words than so many tokens can be."""
    most = WORDS * (tokens + TOLERATED)
    # Spaces are counted faster than words, but indented code and tables have many more of them: a run of spaces is one
    # token.
    if sum(text.count(" ") for text in texts) <= most:
        return False
    return sum(len(text.split()) for text in texts) > most


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
