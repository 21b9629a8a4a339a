"""A provider's usage that no tokenizer can result in."""

from __future__ import annotations

import pytest

from shared.domain.content import ImagePart, TextPart
from shared.domain.job import Choice, Usage
from shared.domain.opaque import OpaquePart
from shared.domain.request import GenerateRequest, Message
from workers.execution.attempts.usage_check import TOLERATED, disagreement

# 4,000 words of 5 bytes.
LONG = "word " * 4000
# The columns of a table: as many words, in which runs of spaces are one token.
PADDED = f"word{' ' * 20}" * 4000
IMAGE = ImagePart(type="image", media_type="image/png", data="iVBORw0KGgo=")


def chat(content: str, *, image: bool = False) -> GenerateRequest:
    parts = [TextPart(type="text", text=content), IMAGE]
    return GenerateRequest(messages=[Message(role="user", content=parts if image else content)])


@pytest.mark.parametrize(
    ("request_", "text", "usage", "parts"),
    [
        (chat(LONG), LONG, Usage(5000, 0, 5000), None),
        (chat(LONG), LONG, Usage(5000, 0, 5000 + 30_000, 30_000), None),  # it reports its hidden reasoning
        (chat("hi"), "hi", Usage(900, 0, 900), None),  # a template
        (chat(PADDED), PADDED, Usage(2500, 0, 2500), None),
        (chat(PADDED), PADDED, Usage(3, 0, 3), ("input", "output")),
        (chat(LONG), LONG, Usage(40_000, 0, 5000), ("input",)),
        (chat(LONG), LONG, Usage(3, 0, 5000), ("input",)),
        (chat(LONG, image=True), LONG, Usage(40_000, 0, 5000), None),
        (chat(LONG, image=True), LONG, Usage(3, 0, 5000), ("input",)),
        (chat(LONG), LONG, Usage(5000, 0, 40_000), ("output",)),
        (chat(LONG), LONG, Usage(0, 0, 3), ("input", "output")),
        (GenerateRequest(prompt=[1] * 5000), "hi", Usage(5000, 0, 1), None),
        (GenerateRequest(prompt=[1] * 5000), "hi", Usage(3, 0, 1), ("input",)),
        (GenerateRequest(prompt=LONG, echo=True), LONG, Usage(5000, 0, 1), None),
    ],
)
def test_numbers_that_cannot_be_right(
    request_: GenerateRequest, text: str, usage: Usage, parts: tuple[str, ...] | None
) -> None:
    found = disagreement(request_, [Choice(0, text, "stop")], usage)
    assert (None if found is None else found.parts) == parts


def test_our_own_numbers_are_kept() -> None:
    found = disagreement(chat(LONG), [Choice(0, "four", "stop"), Choice(1, "é" * 8, "stop")], Usage(1, 0, 1))
    assert found is not None
    assert found.stored() == {"input": 5000, "output": 5}


def test_reasoning_that_is_not_all_there_has_no_bound() -> None:
    many = Usage(1, 0, TOLERATED * 50)
    assert disagreement(chat("x"), [Choice(0, "x", "stop")], many) is not None
    assert disagreement(chat("x"), [Choice(0, "x", "stop", "in short")], many) is None
    opaque = (OpaquePart("anthropic", "signature", "s"),)
    assert disagreement(chat("x"), [Choice(0, "x", "stop", opaque=opaque)], many) is None
