"""Estimates of numbers of tokens that only the upstream knows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from shared.domain.events import Delta
from shared.domain.request import GenerateRequest

# Common tokenizers make a token of about four characters of English; other languages have more tokens.
CHARACTERS = 4
# Of UTF-8, in a token of the text of an answer. Pieces of a stream that are longer on average than `LONG_BYTES` have
# several tokens.
BYTES, LONG_BYTES = 4, 6


def estimated_tokens(request: GenerateRequest) -> int:
    """Roughly the number of tokens in the texts of a request; images and files are not counted."""
    if isinstance(request.prompt, list):
        return len(request.prompt)
    characters = len(request.prompt or "")
    for message in request.messages or ():
        characters += _characters(message.content)
    return characters // CHARACTERS + 1


def answer_tokens(deltas: Iterable[Delta]) -> int:
    """The number of tokens in the text of an answer so far, where an upstream counts none until the end.

    A piece counts as a token, as most servers send them. If the pieces are too long for that, their number is estimated
    from the text, rather too high than too low: what is left of `max_tokens` must not exceed it.
    """
    counted = size = 0
    for delta in deltas:
        counted += delta.tokens
        size += len(delta.text.encode())
    return counted if size <= LONG_BYTES * counted else -(-size // BYTES)


def _characters(content: Any) -> int:
    if isinstance(content, str):
        return len(content)
    return sum(len(getattr(part, "text", None) or "") for part in content or ())
