"""Text is cut at stop strings wherever it is divided."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as some

from tests.support.examples import example_count
from workers.engines.triton.stop_strings import StopStrings


def cut(strings: list[str], pieces: list[str], *, included: bool = False) -> tuple[str, str | None]:
    stops = StopStrings(strings, included=included)
    released = "".join([stops.add(piece) for piece in pieces])
    return released + stops.add("", at_end=True), stops.found


def test_the_text_ends_before_the_stop_string() -> None:
    assert cut(["END"], ["a E", "N", "D b"]) == ("a ", "END")
    assert cut(["END"], ["a EN", "d"]) == ("a ENd", None)
    assert cut(["END"], ["a EN"]) == ("a EN", None)


def test_the_stop_string_may_belong_to_the_text() -> None:
    assert cut(["END"], ["a E", "ND b"], included=True) == ("a END", "END")


def test_the_string_that_is_complete_first_counts() -> None:
    assert cut(["abc", "b"], ["xabc"]) == ("xa", "b")
    assert cut(["ab", "abc"], ["abc"]) == ("", "ab")


def test_only_what_may_be_a_stop_string_is_held_back() -> None:
    stops = StopStrings(["\n\n", "STOP"])
    assert stops.add("a line\n") == "a line"
    assert stops.add("b ST") == "\nb "
    assert stops.add("ART") == "START"


@example_count(200, long=5000)
@hypothesis.given(
    some.lists(some.text("ab", min_size=1, max_size=3), min_size=1, max_size=3),
    some.lists(some.text("abc", max_size=4), max_size=6),
)
def test_the_division_of_the_text_does_not_matter(strings: list[str], pieces: list[str]) -> None:
    assert cut(strings, pieces) == cut(strings, list("".join(pieces)))
