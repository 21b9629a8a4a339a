"""Gives out text and tokens together, whole: what has been shown is always the text of certain tokens.

An engine that looks for stop strings holds back text that may begin one, and so shows the half of a token's
text. Were a log to end there, the next worker could not go on after its last token.
"""

from __future__ import annotations

from collections import deque


class TokenBoundaries:
    """One choice's tokens, with their text as decoded, and the text that may be shown."""

    def __init__(self) -> None:
        # Tokens, and where the text ends that they make; a part of a character ends with its last part.
        self._waiting: deque[tuple[list[int], int]] = deque()
        self._textless: list[int] = []
        self._decoded = 0
        self._text = ""
        self._given = 0

    def made(self, token_id: int, text: str) -> None:
        """A token and the text that it adds; none, where it is a part of a character."""
        self._textless.append(token_id)
        if text:
            self._decoded += len(text)
            self._waiting.append((self._textless, self._decoded))
            self._textless = []

    def may_show(self, text: str) -> None:
        """More text that holds no part of a stop string."""
        self._text += text

    def take(self, *, finished: bool) -> list[tuple[int, str]]:
        """The tokens that are whole now, each with its text; all of them once the choice is finished."""
        taken: list[tuple[int, str]] = []
        while self._waiting and (finished or self._waiting[0][1] <= len(self._text)):
            tokens, end = self._waiting.popleft()
            taken += [(token, "") for token in tokens[:-1]]
            taken.append((tokens[-1], self._text[self._given : end]))
            self._given = min(end, len(self._text))
        if finished:
            taken += [(token, "") for token in self._textless]
            if taken and (rest := self._text[self._given :]):
                token, text = taken[-1]
                taken[-1] = (token, text + rest)
        return taken
