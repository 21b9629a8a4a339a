"""The ids of a stream's events, by which it is resumed and repeated events are recognized."""

from __future__ import annotations

import re
from collections import deque

_ORDERED = re.compile(r"\d{1,20}(?:[:.-]\d{1,20}){0,3}")
_NUMBER = re.compile(r"\d+")
# An event may be repeated after so many others.
RECENT = 64


class EventIds:
    """The position in a stream of output, by ids such as `1690212292:7`.

    It is known as long as each event has a higher id than the one before it. Otherwise the stream cannot be resumed
    without a risk to repeat or lose something: `usable` is False, and `last` empty.
    """

    def __init__(self, last: str = "") -> None:
        self._last = _order(last)
        self.last = last if self._last else ""
        self._recent: deque[tuple[str, str]] = deque(maxlen=RECENT)
        self._reopened = bool(self._last)
        self.usable = True

    def reopened(self) -> None:
        """The stream begins again, where it was left or from its start."""
        self._reopened = True

    def is_new(self, event_id: str, text: str) -> bool:
        """Whether an event of output is new; it becomes the last one then."""
        if not self.usable:
            return True
        if (event_id, text) in self._recent:
            return False
        order = _order(event_id)
        if order > self._last:
            self._reopened = False
            self._last, self.last = order, event_id
            self._recent.append((event_id, text))
            return True
        if self._reopened and order:
            return False
        self.usable, self.last = False, ""
        return True


def _order(event_id: str) -> tuple[int, ...]:
    return tuple(map(int, _NUMBER.findall(event_id))) if _ORDERED.fullmatch(event_id) else ()
