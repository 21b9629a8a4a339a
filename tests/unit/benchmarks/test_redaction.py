"""The generated texts, and the figures in docs/privacy.md."""

from __future__ import annotations

import re

from benchmarks.redaction.__main__ import BEGIN, END, PAGE
from benchmarks.redaction.score import NAMES, score, table
from benchmarks.redaction.texts import LANGUAGES, generate
from shared.domain.redaction_rules import RedactionKind
from shared.privacy.redaction import Redactor

# The figures of a sample differ from those of all texts by less.
TOLERANCE = 0.04


def documented() -> dict[str, tuple[float, float]]:
    """Precision and recall by kind and language, from the page."""
    figures = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    rows = re.findall(r"^\| `?(\w+)`? \| [\d,]+ \| ([\d.]+)% \| ([\d.]+)% \|", figures, re.MULTILINE)
    return {name: (float(precision) / 100, float(recall) / 100) for name, precision, recall in rows}


def test_the_same_seed_gives_the_same_texts() -> None:
    assert list(generate(20, seed=3)) == list(generate(20, seed=3))
    assert [one.language for one in generate(5)] == list(LANGUAGES)
    assert all(value in one.text for one in generate(50) for _, value in one.values)


def test_the_documented_figures_are_those_of_the_code() -> None:
    scores = score(Redactor(), generate(600))
    found = {kind.value: one for kind, one in scores.kinds.items()}
    found |= {NAMES[language]: one for language, one in scores.languages.items()}
    figures = documented()
    assert figures.keys() == found.keys()
    for name, one in found.items():
        precision, recall = figures[name]
        assert one.precision > precision - TOLERANCE, name
        assert one.recall > recall - TOLERANCE, name


def test_no_card_and_no_iban_can_be_read_afterwards() -> None:
    scores = score(Redactor(), generate(600, seed=7, hard=0))
    assert scores.kinds[RedactionKind.CARD].left == scores.kinds[RedactionKind.IBAN].left == 0
    assert "| `card` |" in table(scores)
