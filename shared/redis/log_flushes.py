"""When the events of a job's log were written, by the clock of Redis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import orjson

WRITTEN_AGAIN = b"0"


@dataclass(frozen=True, slots=True)
class Flush:
    """Events that were written to a log together, by an attempt: how many tokens they have.

    `at`: by the clock of Redis. `restarted`: the output so far was discarded.
    """

    at: datetime
    attempt: int
    tokens: int
    restarted: bool = False


@dataclass(slots=True)
class FlushReader:
    """Collects the flushes of a log whose entries are read one after the other.

    What was written again, after Redis had lost the log, is left out: it was first written at another time.
    `position`: the `seq` of the last entry that was read.
    """

    flushes: list[Flush] = field(default_factory=list)
    position: int = 0
    _attempt: int = 0
    _tokens: int = 0
    _restarted: bool = False

    def clear(self) -> None:
        """Begin anew."""
        self.flushes, self.position = [], 0
        self._attempt, self._tokens, self._restarted = 0, 0, False

    def read(self, entries: Iterable[Mapping[bytes, bytes]]) -> None:
        """Read the fields of the next entries."""
        for fields in entries:
            kind = fields.get(b"t")
            if kind == b"started":
                self._attempt = _attempt_of(fields) or self._attempt
            self._restarted = self._restarted or kind == b"restarted"
            self._tokens += _tokens_of(fields.get(b"k", b""))
            if (written := fields.get(b"w", b"")).isdigit():
                if written != WRITTEN_AGAIN:
                    at = datetime.fromtimestamp(int(written) / 1000, UTC)
                    self.flushes.append(Flush(at, self._attempt, self._tokens, self._restarted))
                self._tokens, self._restarted = 0, False

    def first_token_at(self) -> datetime | None:
        """When the first token of the output, as it is after the last restart, was written; None if not known."""
        found = None
        for flush in self.flushes:
            if flush.restarted:
                found = None
            if found is None and flush.tokens:
                found = flush.at
        return found


def _attempt_of(fields: Mapping[bytes, bytes]) -> int | None:
    """The attempt of a `started` event."""
    try:
        attempt = orjson.loads(fields[b"e"])["attempt"]
    except (ValueError, KeyError, TypeError):
        return None
    return attempt if isinstance(attempt, int) else None


def _tokens_of(token_ids: bytes) -> int:
    """The number of tokens of an event: of a list of ids, or as it is if the ids are not known."""
    if token_ids.startswith(b"["):
        return token_ids.count(b",") + 1
    return int(token_ids) if token_ids.isdigit() else 0
