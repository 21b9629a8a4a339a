"""Releases text only together with whole tokens.

An engine that looks for stop strings holds back text that may be the start of one, and may therefore release part of a
token's text. If the log ended there, the next worker could not resume after its last token.
"""

from __future__ import annotations

from collections import deque

# Characters of taken text that are kept: each release copies them.
TAKEN = 4096


class TokenBoundaries:
    """The tokens of one choice, their decoded text, and the text that the engine has released."""

    def __init__(self) -> None:
        # Tokens with the offset at which their text ends. Tokens that decode to parts of one character are one entry.
        self._pending: deque[tuple[list[int], int]] = deque()
        self._without_text: list[int] = []
        self._decoded = 0
        # The released text without its first `_cut` characters, which have been taken.
        self._released = ""
        self._cut = 0
        self._taken = 0

    def add(self, token_id: int, text: str) -> None:
        """Add a token and its decoded text, which is empty if the token is part of a character."""
        self._without_text.append(token_id)
        if text:
            self._decoded += len(text)
            self._pending.append((self._without_text, self._decoded))
            self._without_text = []

    def release(self, text: str) -> None:
        """Add text that is not part of a stop string."""
        self._released += text

    def take(self, *, finished: bool) -> list[tuple[int, str]]:
        """Remove and return the tokens whose text is released, each with its text; all tokens if `finished`."""
        taken: list[tuple[int, str]] = []
        while self._pending and (finished or self._pending[0][1] <= self._end):
            tokens, end = self._pending.popleft()
            taken += [(token, "") for token in tokens[:-1]]
            taken.append((tokens[-1], self._released[self._taken - self._cut : end - self._cut]))
            self._taken = min(end, self._end)
        if finished:
            taken += [(token, "") for token in self._without_text]
            if taken and (rest := self._released[self._taken - self._cut :]):
                token, text = taken[-1]
                taken[-1] = (token, text + rest)
        if self._taken - self._cut > TAKEN:
            self._released = self._released[self._taken - self._cut :]
            self._cut = self._taken
        return taken

    @property
    def _end(self) -> int:
        """The number of released characters."""
        return self._cut + len(self._released)
