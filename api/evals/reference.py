"""How far an answer is the expected one, without a judge. Pure functions."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping

# Chinese and Japanese are written without spaces: each character counts as a word.
_UNSPACED = "\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _words(answer: str, expected: str) -> tuple[list[str], list[str]]:
    """The words of both. If the expected answer has none, such as an emoji or `+`, its characters stand for them."""
    own, wanted = _normal(answer), _normal(expected)
    if found := _WORD.findall(wanted):
        return _WORD.findall(own), found
    return [one for one in own if not one.isspace()], [one for one in wanted if not one.isspace()]


def exact(answer: str, expected: str) -> float:
    """1 if both have the same words in the same order, without regard to case and punctuation; else 0."""
    own, wanted = _words(answer, expected)
    return float(own == wanted)


def f1(answer: str, expected: str) -> float:
    """The F1 of the words that both have, as reading comprehension is scored: 1 for the same words, 0 for none."""
    own, wanted = map(Counter, _words(answer, expected))
    if not own or not wanted:
        return float(own == wanted)
    common = (own & wanted).total()
    return 2 * common / (own.total() + wanted.total())


def contains(answer: str, expected: str) -> float:
    """1 if the expected words are a part of the answer, in this order; else 0. An empty answer is only in itself."""
    own, wanted = _words(answer, expected)
    if not wanted:
        return float(not own)
    return float(any(own[start : start + len(wanted)] == wanted for start in range(len(own) - len(wanted) + 1)))


METRICS: Mapping[str, Callable[[str, str], float]] = {"exact": exact, "f1": f1, "contains": contains}
