"""How far an answer is the expected one, without a judge. Pure functions."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping

_WORD = re.compile(r"\w+")


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def exact(answer: str, expected: str) -> float:
    """1 if both have the same words in the same order, without regard to case and punctuation; else 0."""
    return float(_words(answer) == _words(expected))


def f1(answer: str, expected: str) -> float:
    """The F1 of the words that both have, as reading comprehension is scored: 1 for the same words, 0 for none."""
    own, wanted = Counter(_words(answer)), Counter(_words(expected))
    if not own or not wanted:
        return float(own == wanted)
    common = (own & wanted).total()
    return 2 * common / (own.total() + wanted.total())


def contains(answer: str, expected: str) -> float:
    """1 if the expected words are a part of the answer, in this order; else 0."""
    own, wanted = _words(answer), _words(expected)
    return float(any(own[start : start + len(wanted)] == wanted for start in range(len(own) - len(wanted) + 1)))


METRICS: Mapping[str, Callable[[str, str], float]] = {"exact": exact, "f1": f1, "contains": contains}
