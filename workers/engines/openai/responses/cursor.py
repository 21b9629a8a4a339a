"""The position in the stream of a response, as the event log keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# The answer so far was read from the response itself, not from its stream.
_RETRIEVED = "retrieved"


@dataclass(frozen=True, slots=True)
class Cursor:
    """`seq` is the sequence number of the last event; None if the stream cannot be resumed there.

    `calls` has the function calls that are not complete: their indexes in the answer, by those of their output items.
    """

    seq: int | None
    calls: Mapping[int, int] = field(default_factory=dict)

    def encoded(self) -> int | str:
        """The number of the event, followed by the calls: `7`, or `7:2=0,3=1`."""
        if self.seq is None:
            return _RETRIEVED
        if not self.calls:
            return self.seq
        return f"{self.seq}:{','.join(f'{item}={call}' for item, call in self.calls.items())}"

    @classmethod
    def of(cls, encoded: int | str | None) -> Cursor:
        """Decode a cursor. One that this version cannot read does not resume the stream."""
        if isinstance(encoded, int):
            return cls(encoded)
        if encoded is None or encoded == _RETRIEVED:
            return cls(None)
        seq, _, calls = encoded.partition(":")
        try:
            pairs = [pair.split("=") for pair in calls.split(",")]
            return cls(int(seq), {int(item): int(call) for item, call in pairs})
        except ValueError:
            return cls(None)
