"""Finds the keywords of a rule in a text: in a time that hardly depends on their number.

The words of a text are split once for all rules. A keyword of letters and digits must be a word, or several words in a
row. One with signs, or of a language that does not separate words, may be anywhere in the text. Where the script
changes to or from one of those, a word ends: such texts have no space around a word of another language either.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import pairwise

from api.routing.scripts import SPACED, UNSPACED, is_spaced

_WORD = re.compile(rf"[^\W{UNSPACED}]+|[^\W{SPACED}]+")


class SearchedText:
    """A text in lower case, with what is needed to search it; determined when a rule asks for it, and once."""

    def __init__(self, text: str) -> None:
        self.text = _folded(text)

    @cached_property
    def words(self) -> Sequence[str]:
        """The words, in order."""
        return _WORD.findall(self.text)

    @cached_property
    def distinct(self) -> frozenset[str]:
        """The words, each once."""
        return frozenset(self.words)

    @cached_property
    def joined(self) -> str:
        """The words, each between two spaces."""
        return f" {' '.join(self.words)} "

    @cached_property
    def pairs(self) -> frozenset[tuple[str, str]]:
        """The pairs of words that follow one another."""
        return frozenset(pairwise(self.words))

    @cached_property
    def characters(self) -> frozenset[str]:
        """The characters, each once."""
        return frozenset(self.text)

    @cached_property
    def character_pairs(self) -> frozenset[str]:
        """The pairs of characters that follow one another."""
        return frozenset(map(str.__add__, self.text, self.text[1:]))


class Keywords:
    """Keywords, sorted by how they are searched for."""

    def __init__(self, keywords: Sequence[str]) -> None:
        self._words: set[str] = set()
        self._phrases: list[tuple[str, frozenset[tuple[str, str]]]] = []
        self._parts: list[tuple[str, frozenset[str], frozenset[str]]] = []
        for keyword in {_folded(keyword) for keyword in keywords}:
            if not _has_only_words(keyword):
                pairs = frozenset(map(str.__add__, keyword, keyword[1:]))
                self._parts.append((keyword, frozenset(keyword), pairs))
            elif len(words := keyword.split()) == 1:
                self._words.add(words[0])
            elif words:
                pairs_of_words = frozenset(pairwise(words))
                self._phrases.append((f" {' '.join(words)} ", pairs_of_words))

    def are_in(self, text: SearchedText) -> bool:
        """Whether a text has one of the keywords."""
        if not self._words.isdisjoint(text.distinct):
            return True
        # Few keywords have only pairs that the text has too, so the text is searched for few.
        if any(pairs <= text.pairs and phrase in text.joined for phrase, pairs in self._phrases):
            return True
        return any(
            characters <= text.characters and pairs <= text.character_pairs and part in text.text
            for part, characters, pairs in self._parts
        )


@lru_cache(maxsize=256)
def keywords_of(keywords: tuple[str, ...]) -> Keywords:
    """The keywords of a rule, which are sorted once."""
    return Keywords(keywords)


def _folded(text: str) -> str:
    # macOS writes accents as characters of their own.
    return unicodedata.normalize("NFC", text).casefold()


def _has_only_words(keyword: str) -> bool:
    return all((character.isalnum() and is_spaced(character)) or character.isspace() for character in keyword)
