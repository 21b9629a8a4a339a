"""The training of the classifier of refusals."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from api.quality.refusals.examples import LANGUAGES, LabelledAnswer, made_answers, read_answers
from api.quality.refusals.fit import fit, measure, mistakes, write

REFUSED = [f"I cannot {verb} that, sorry" for verb in ("do", "write", "say", "draw", "read")]
ANSWERED = [f"Here is {what} for you" for what in ("it", "a poem", "the text", "a list", "one")]
ANSWERS = [LabelledAnswer("en", text, text in REFUSED) for text in (*REFUSED, *ANSWERED)]


def test_it_learns_what_tells_the_answers_apart() -> None:
    classifier = fit(ANSWERS)
    assert classifier.weights["i cannot"] > 0 > classifier.weights["here is"]
    assert classifier.probability("I cannot sing, sorry") > 0.9
    assert classifier.probability("Here is a song for you") < 0.1
    assert mistakes(classifier, ANSWERS) == []
    wrong = LabelledAnswer("en", "Here is what I refuse", True)
    assert [answer for _, answer in mistakes(classifier, [*ANSWERS, wrong])] == [wrong]


def test_the_mix_of_the_answers_does_not_decide() -> None:
    few, many = fit([*ANSWERS[:1], *ANSWERS[5:]]), fit([*ANSWERS[:5], *ANSWERS[5:6]])
    for classifier in (few, many):
        assert classifier.probability("unknown words only") == pytest.approx(0.5, abs=0.45)


def test_precision_and_recall() -> None:
    classifier = fit(ANSWERS)
    others = [
        LabelledAnswer("en", "I cannot do that, sorry", True),
        LabelledAnswer("en", "Here is what I refuse", True),
        LabelledAnswer("en", "Here is the list", False),
        LabelledAnswer("de", "I cannot write that, sorry", False),
    ]
    measured = measure(classifier, others)
    assert (measured["precision"]["count"], measured["precision"]["n"]) == (1, 2)
    assert (measured["recall"]["count"], measured["recall"]["n"]) == (1, 2)
    assert measured["languages"]["fr"]["recall"] == {"count": 0, "n": 0, "rate": None, "low": None, "high": None}


def test_the_file_that_it_writes(tmp_path: Path) -> None:
    classifier = fit(ANSWERS)
    size = write(classifier, tmp_path / "weights.json")
    stored = orjson.loads((tmp_path / "weights.json").read_bytes())
    assert size == (tmp_path / "weights.json").stat().st_size
    assert stored == {"bias": classifier.bias, "measured": {}, "weights": dict(classifier.weights)}


def test_patterns(tmp_path: Path) -> None:
    path = tmp_path / "patterns.txt"
    path.write_text("en + (I|We) (can't|won't)( ever|).\nde - (Ja|Nein)!\n")
    made = made_answers(path)
    assert len(made) == 10
    assert LabelledAnswer("en", "We won't ever.", True) in made
    assert LabelledAnswer("de", "Nein!", False) in made
    assert made == made_answers(path)


@pytest.mark.parametrize("line", ["+", "? what", "- ", "+ Yes."])
def test_lines_that_are_no_answers(tmp_path: Path, line: str) -> None:
    for language in LANGUAGES:
        (tmp_path / f"{language}.txt").write_text(f"+ Yes.\n{line}\n" if language == "en" else "")
    with pytest.raises(ValueError, match=r"en\.txt:2: "):
        read_answers(tmp_path)
