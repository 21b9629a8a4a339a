"""The text of events is joined, whatever they are cut in and repeat."""

from __future__ import annotations

import pytest

from workers.engines.triton.event_texts import EventTexts, NotAContinuation


def escaped(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def joined(texts: EventTexts, *pieces: str) -> list[str]:
    return [*(texts.add(piece) for piece in pieces), texts.end()]


def test_a_character_that_is_cut_between_events_is_joined() -> None:
    wave = "🌊".encode()
    assert joined(EventTexts(), "a", escaped(wave[:1]), escaped(wave[1:3]), escaped(wave[3:]) + "b") == [
        "a", "", "", "🌊b", "",
    ]  # fmt: skip


def test_bytes_that_are_no_character_are_replaced() -> None:
    assert joined(EventTexts(), escaped(b"\xff") + "a", escaped(b"\xc3")) == ["\ufffda", "", "\ufffd"]
    assert joined(EventTexts(), "\ud83c", "\udf0a x") == ["\ufffd", "\ufffd x", ""]


def test_events_that_repeat_the_text_before_them() -> None:
    texts = EventTexts(cumulative=True)
    assert joined(texts, "a", "a", "a wa\ufffd", "a wa\ufffd\ufffd", "a wasé") == ["a", "", " wa", "", "sé", ""]


def test_the_end_of_a_repeated_text_is_kept() -> None:
    assert joined(EventTexts(cumulative=True), "a\ufffd") == ["a", "\ufffd"]
    assert joined(EventTexts(cumulative=True), "a" + escaped(b"\xc3"), "aü") == ["a", "ü", ""]


def test_a_text_that_does_not_repeat_is_noticed() -> None:
    texts = EventTexts(cumulative=True)
    texts.add("a b")
    with pytest.raises(NotAContinuation):
        texts.add(" c")


@pytest.mark.parametrize("cumulative", [False, True])
def test_the_prompt_is_removed_once(cumulative: bool) -> None:
    pieces = ["The ", "mill", " turns", "The mill"]
    if cumulative:
        pieces = ["".join(pieces[: count + 1]) for count in range(len(pieces))]
    assert joined(EventTexts(cumulative=cumulative, prompt="The mill"), *pieces) == ["", "", " turns", "The mill", ""]


def test_a_text_that_only_begins_like_the_prompt_is_kept() -> None:
    assert joined(EventTexts(prompt="The mill"), "The ", "wheel") == ["", "The wheel", ""]
    assert joined(EventTexts(prompt="The mill"), "The ") == ["", "The "]
