"""Counts the tokens of a text that grows, in short steps."""

from __future__ import annotations

from shared.prompts.token_counter import TokenCounter

# Characters that are counted together: about a millisecond. Counts of parts are exact if the parts end with a word.
PART = 2048


class OutputCounter:
    """Counts the tokens of one answer's text."""

    def __init__(self, counter: TokenCounter) -> None:
        self._counter = counter
        self._counted = 0
        self._rest = ""

    def add(self, text: str) -> None:
        self._rest += text
        while len(self._rest) >= PART:
            # A space starts the token of the word after it.
            end = self._rest.rfind(" ", PART // 2, PART)
            end = end if end > 0 else PART
            self._counted += self._count(self._rest[:end])
            self._rest = self._rest[end:]

    @property
    def total(self) -> int:
        """The number of tokens so far."""
        return self._counted + (self._count(self._rest) if self._rest else 0)

    def _count(self, text: str) -> int:
        return self._counter.count_text(text, add_special_tokens=False)
