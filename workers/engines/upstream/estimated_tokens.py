"""Estimates of numbers of tokens that only the upstream knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shared.domain.events import Delta
from shared.domain.request import GenerateRequest

# Common tokenizers make a token of about four characters of English; other languages have more tokens.
CHARACTERS = 4
# Tokens of common tokenizers end at white space. A few tokenizers have tokens of several words, but not of more than
# two on average, so that pieces of a stream with more words have several tokens.
WORDS = 2


def estimated_tokens(request: GenerateRequest) -> int:
    """Roughly the number of tokens in the texts of a request; images and files are not counted."""
    if isinstance(request.prompt, list):
        return len(request.prompt)
    characters = len(request.prompt or "")
    for message in request.messages or ():
        characters += _characters(message.content)
    return characters // CHARACTERS + 1


def counted_tokens(deltas: Sequence[Delta]) -> int:
    """The number of tokens in an answer so far, of which a piece of the stream counts as one."""
    return sum([delta.tokens for delta in deltas])


def fewest_tokens(deltas: Sequence[Delta]) -> int:
    """The number of tokens that an answer so far has at least: what it takes from the request's `max_tokens`.

    It is the number of pieces, or the number of words if that proves that the pieces have several tokens. A number that
    is too low lets the answer become longer than `max_tokens`; one that is too high would lose a part of it.
    """
    counted = counted_tokens(deltas)
    words = len("".join([delta.text for delta in deltas]).split())
    return words if words > WORDS * counted else counted


def _characters(content: Any) -> int:
    if isinstance(content, str):
        return len(content)
    return sum(len(getattr(part, "text", None) or "") for part in content or ())
