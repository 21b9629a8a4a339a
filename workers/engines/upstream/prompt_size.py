"""An estimate of the tokens in a prompt, for a limit on tokens per minute."""

from __future__ import annotations

from typing import Any

from shared.domain.request import GenerateRequest

# Common tokenizers make a token of about four characters of English; other languages have more tokens.
CHARACTERS = 4


def estimated_tokens(request: GenerateRequest) -> int:
    """Roughly the number of tokens in the texts of a request; images and files are not counted."""
    if isinstance(request.prompt, list):
        return len(request.prompt)
    characters = len(request.prompt or "")
    for message in request.messages or ():
        characters += _characters(message.content)
    return characters // CHARACTERS + 1


def _characters(content: Any) -> int:
    if isinstance(content, str):
        return len(content)
    return sum(len(getattr(part, "text", None) or "") for part in content or ())
