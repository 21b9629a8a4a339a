"""However text is held back, what is given out is the text of whole tokens, and all of it in the end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.engines.token_boundaries import TokenBoundaries

TEXTS = st.lists(st.text("ab🌊", max_size=3), min_size=1, max_size=12)


@given(texts=TEXTS, held=st.lists(st.integers(0, 40), min_size=12, max_size=12), cut=st.integers(0, 40))
def test_tokens_come_with_their_text(texts: list[str], held: list[int], cut: int) -> None:
    """Each step shows all but so many characters; the end cuts the text, as a stop string does."""
    whole = TokenBoundaries()
    made, shown, given = "", 0, ""
    taken: list[tuple[int, str]] = []
    for token, text in enumerate(texts):
        whole.made(token, text)
        made += text
        may = max(shown, len(made) - held[token])
        whole.may_show(made[shown:may])
        shown = may
        taken += whole.take(finished=False)
        given = "".join(piece for _, piece in taken)
        assert given == "".join(texts[: len(taken)])
        assert not taken or taken[-1][1]
    end = max(shown, len(made) - cut)
    whole.may_show(made[shown:end])
    taken += whole.take(finished=True)
    assert [token for token, _ in taken] == list(range(len(texts)))
    assert "".join(piece for _, piece in taken) == made[:end]


def test_parts_of_a_character_wait_for_the_last() -> None:
    whole = TokenBoundaries()
    whole.made(1, "")
    whole.made(2, "")
    assert whole.take(finished=False) == []
    whole.made(3, "🌊")
    whole.may_show("🌊")
    assert whole.take(finished=False) == [(1, ""), (2, ""), (3, "🌊")]
