"""Released text always ends at a token boundary, and at the end nothing is missing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.engines.token_boundaries import TokenBoundaries

TEXTS = st.lists(st.text("ab🌊", max_size=3), min_size=1, max_size=12)


@given(texts=TEXTS, held_back=st.lists(st.integers(0, 40), min_size=12, max_size=12), cut=st.integers(0, 40))
def test_tokens_are_returned_with_their_text(texts: list[str], held_back: list[int], cut: int) -> None:
    """Each step holds back some characters; at the end the text is cut, as by a stop string."""
    boundaries = TokenBoundaries()
    decoded, released = "", 0
    taken: list[tuple[int, str]] = []
    for token, text in enumerate(texts):
        boundaries.add(token, text)
        decoded += text
        end = max(released, len(decoded) - held_back[token])
        boundaries.release(decoded[released:end])
        released = end
        taken += boundaries.take(finished=False)
        assert "".join(piece for _, piece in taken) == "".join(texts[: len(taken)])
        assert not taken or taken[-1][1]
    end = max(released, len(decoded) - cut)
    boundaries.release(decoded[released:end])
    taken += boundaries.take(finished=True)
    assert [token for token, _ in taken] == list(range(len(texts)))
    assert "".join(piece for _, piece in taken) == decoded[:end]


def test_parts_of_a_character_are_returned_with_its_last_part() -> None:
    boundaries = TokenBoundaries()
    boundaries.add(1, "")
    boundaries.add(2, "")
    assert boundaries.take(finished=False) == []
    boundaries.add(3, "🌊")
    boundaries.release("🌊")
    assert boundaries.take(finished=False) == [(1, ""), (2, ""), (3, "🌊")]
