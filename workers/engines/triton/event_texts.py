"""Joins the texts of events, which may be cut inside a character or repeat what came before."""

from __future__ import annotations

import codecs

_NEW_DECODER = codecs.getincrementaldecoder("utf-8")
# Tokenizers write it for part of a character.
_REPLACEMENT = "\ufffd"


class NotAContinuation(ValueError):
    """An event does not repeat the text of the events before it."""


class EventTexts:
    """The new text of each event of one answer."""

    def __init__(self, *, cumulative: bool = False, prompt: str = "") -> None:
        """`cumulative`: each event repeats the text before it. `prompt`: removed from the start of the text."""
        self._cumulative = cumulative
        # Of a cumulative text: what was returned, and what its last event has beyond that.
        self._seen = ""
        self._beyond = ""
        self._decoder = _NEW_DECODER("replace")
        self._is_inside_character = False
        self._prompt = prompt
        # Text that begins like the prompt.
        self._held = ""

    def add(self, text: str) -> str:
        """The new text of an event. Bytes that are not UTF-8 are surrogates in it (PEP 383).

        Raises:
            NotAContinuation: the text does not begin as that of the last event.
        """
        if self._cumulative:
            text = self._difference(text)
        elif self._is_inside_character or not _is_unicode(text):
            text = self._decoder.decode(_bytes(text))
            self._is_inside_character = self._decoder.getstate()[0] != b""
        return self._without_prompt(text) if self._prompt else text

    def end(self) -> str:
        """What is left at the end: part of a character, or a text that is the beginning of the prompt."""
        rest = self._held + self._decoder.decode(b"", final=True) + self._beyond
        self._held = self._beyond = ""
        return rest

    def _difference(self, text: str) -> str:
        if not _is_unicode(text):
            text = _bytes(text).decode("utf-8", "replace")
        if not text.startswith(self._seen):
            raise NotAContinuation
        new = text[len(self._seen) :].rstrip(_REPLACEMENT)
        self._seen += new
        self._beyond = text[len(self._seen) :]
        return new

    def _without_prompt(self, text: str) -> str:
        self._held += text
        if len(self._held) < len(self._prompt) and self._prompt.startswith(self._held):
            return ""
        rest = self._held.removeprefix(self._prompt)
        self._prompt = self._held = ""
        return rest


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # surrogates that stand for no byte
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()
