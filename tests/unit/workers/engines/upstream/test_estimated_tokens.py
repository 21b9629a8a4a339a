"""Estimates of the tokens of prompts and answers."""

from __future__ import annotations

import pytest

from shared.domain.events import Delta
from shared.domain.request import GenerateRequest, Message
from workers.engines.upstream.estimated_tokens import counted_tokens, estimated_tokens, fewest_tokens


def test_texts_count_by_their_length() -> None:
    assert estimated_tokens(GenerateRequest(prompt=[1, 2, 3])) == 3
    assert estimated_tokens(GenerateRequest(prompt="x" * 4000)) == 1001
    messages = [Message(role="system", content="x" * 400), Message(role="user", content="x" * 400)]
    assert estimated_tokens(GenerateRequest(messages=messages)) == 201


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        ["The", " quick", " brown", " fox"],
        ["das", " Wetter", "bericht", "\n"],
        [" international"] * 100,
        ["\u0421\u0435\u0433\u043e", "\u0434\u043d\u044f ", "\u043c\u044b \u0440", "\u0430\u0441\u0441"] * 25,
        ["\u4f60\u597d\u5417"] * 100,
        ["\u5929\u6c14\u9884\u62a5"] * 100,
        ["\U0001f600", "\U0001f469\u200d\U0001f469\u200d\U0001f467", " \u2764\ufe0f"] * 30,
        [" " * 16, "return", " self", "._", "context", ".tokens", "\n\n"] * 20,
        ["-" * 64, "\n"] * 20,
        [" in the", " end of"] * 50,
    ],
    ids=[
        "nothing",
        "words",
        "subwords",
        "long words",
        "Cyrillic",
        "Chinese",
        "long Chinese",
        "emoji",
        "code",
        "lines",
        "tokens of two words",
    ],
)
def test_a_piece_of_a_stream_is_one_token(pieces: list[str]) -> None:
    """However many bytes it has: the rest of an answer may use all that is left of `max_tokens`."""
    deltas = [Delta(0, piece, unidentified=1) for piece in pieces]
    merged = Delta(0, "".join(pieces), unidentified=len(pieces))
    for answer in (deltas, [merged]):
        assert fewest_tokens(answer) == counted_tokens(answer) == len(pieces)


@pytest.mark.parametrize(
    ("pieces", "tokens"),
    [
        (["The quick brown fox jumps over", " the lazy dog."], 9),
        (["The quick brown fo", "x jumps over the lazy dog."], 9),
        (["\u041c\u044b \u0438\u0434\u0451\u043c \u0434\u043e\u043c\u043e\u0439 "], 3),
        (["\u5929\u6c14\u9884\u62a5\u5929\u6c14"], 1),
    ],
    ids=["English", "cut words", "Cyrillic", "characters"],
)
def test_pieces_of_several_words_have_at_least_a_token_for_each(pieces: list[str], tokens: int) -> None:
    """Never more than common tokenizers make of them: these have at least one for each word."""
    deltas = [Delta(0, piece, unidentified=1) for piece in pieces]
    assert fewest_tokens(deltas) == tokens
    assert counted_tokens(deltas) == len(pieces)
