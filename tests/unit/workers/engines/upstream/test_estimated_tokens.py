"""Estimates of the tokens of prompts and answers."""

from __future__ import annotations

import pytest

from shared.domain.events import Delta
from shared.domain.request import GenerateRequest, Message
from workers.engines.upstream.estimated_tokens import answer_tokens, estimated_tokens


def test_texts_count_by_their_length() -> None:
    assert estimated_tokens(GenerateRequest(prompt=[1, 2, 3])) == 3
    assert estimated_tokens(GenerateRequest(prompt="x" * 4000)) == 1001
    messages = [Message(role="system", content="x" * 400), Message(role="user", content="x" * 400)]
    assert estimated_tokens(GenerateRequest(messages=messages)) == 201


@pytest.mark.parametrize(
    ("pieces", "tokens"),
    [
        ([], 0),
        (["The", " quick", " brown", " fox"], 4),
        (["das", " Wetter", "bericht", "\n"], 4),
        (["\u5929", "\u6c14", "\u9884", "\u62a5"], 4),
        (["The quick brown fox jumps over", " the lazy dog."], 11),
        (["\u5929\u6c14\u9884\u62a5\u5929\u6c14"], 5),
    ],
    ids=["nothing", "words", "subwords", "characters", "merged words", "merged characters"],
)
def test_the_tokens_of_an_answer(pieces: list[str], tokens: int) -> None:
    """Each piece is one token, unless the pieces are longer than tokens are."""
    deltas = [Delta(0, piece, unidentified=1) for piece in pieces]
    merged = Delta(0, "".join(pieces), unidentified=len(pieces))
    assert answer_tokens(deltas) == answer_tokens([merged]) == tokens
