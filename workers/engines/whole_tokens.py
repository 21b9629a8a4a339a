"""Gives out text and tokens together, whole: what has been shown is always the text of certain tokens.

An engine that looks for stop strings holds back text that may begin one, and so shows the half of a token's
text. Were a log to end there, the next worker could not go on after its last token.
"""

from __future__ import annotations

from collections import deque


class WholeTokens:
    """One choice's tokens, with their text as decoded, and the text that may be shown."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, int]] = deque()
        self._textless: list[int] = []
        self._decoded = 0
        self._text = ""
        self._given = 0

    def made(self, token_id: int, text: str) -> None:
        """A token and the text that it adds; none, where it is a part of a character."""
        if not text:
            self._textless.append(token_id)
            return
        self._decoded += len(text)
        self._waiting.extend((one, self._decoded) for one in (*self._textless, token_id))
        self._textless.clear()

    def may_show(self, text: str) -> None:
        """More text that holds no part of a stop string."""
        self._text += text

    def take(self, *, finished: bool) -> tuple[str, tuple[int, ...]]:
        """The text and the tokens that are whole now; all of them once the choice is finished."""
        end, tokens = self._given, []
        while self._waiting and (finished or self._waiting[0][1] <= len(self._text)):
            token, end = self._waiting.popleft()
            tokens.append(token)
        if finished:
            end = len(self._text)
            tokens += self._textless
        text, self._given = self._text[self._given : end], end
        return text, tuple(tokens)
