"""Remembers the tokens of parts of prompts: the instructions that many requests share, and the earlier turns of a
conversation, which each of its requests repeats."""

from __future__ import annotations

from collections.abc import Hashable
from hashlib import blake2b

# The numbers that are kept are this many at least, and twice as many at most. One takes about 200 bytes.
KEPT = 20_000
# Longer texts are replaced by a digest of this many bytes.
DIGEST_BYTES = 16


class KnownCounts:
    """Numbers by project and text, the least recently used of which are forgotten. May be used by several threads.

    Each project has its own, so that no one can find out by timing what other projects have sent. Texts are not kept.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._newer: dict[Hashable, int] = {}
        self._older: dict[Hashable, int] = {}

    @staticmethod
    def key(project_id: int, text: str) -> Hashable:
        """What a number is kept by."""
        if len(text) <= DIGEST_BYTES:
            return project_id, text
        return project_id, blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()

    def get(self, key: Hashable) -> int | None:
        """A number that was put; None if it is unknown, or was forgotten."""
        number = self._newer.get(key)
        if number is None and (number := self._older.get(key)) is not None:
            self.put(key, number)
        return number

    def put(self, key: Hashable, number: int) -> None:
        """Keep a number."""
        if len(self._newer) >= self._kept:
            self._newer, self._older = {}, self._newer
        self._newer[key] = number
