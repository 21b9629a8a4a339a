"""Reports what stops a live page from being computed: once when it starts and once when it is over, however many look
at the page and however often it is tried again meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from types import TracebackType
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

A = TypeVar("A", bound=Hashable)
# What tells one fault from another: the type of the error and the line that raised it.
_Place = tuple[type[BaseException], str, int]


class Faults(Generic[A]):
    """The faults of one page. `name` is that of the page; A identifies those who see the same parts of it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._places: dict[A, _Place] = {}

    def started(self, audience: A, error: Exception) -> None:
        """Note that the parts of an audience could not be computed.

        It is reported unless they could not before, or those of another audience cannot for the same reason.
        """
        if audience in self._places:
            return
        place = _place(error)
        is_known = place in self._places.values()
        self._places[audience] = place
        if not is_known:
            logger.error(
                "the console's %s cannot be computed; it is tried again until it can be", self._name, exc_info=error
            )

    def ended(self, audience: A, *, recovered: bool) -> None:
        """Note that the parts of an audience were computed again, or if not `recovered`, that nobody looks any more."""
        place = self._places.pop(audience, None)
        if place is None or place in self._places.values():
            return
        what = "can be computed again" if recovered else "is not tried again, because nobody looks at it any more"
        logger.warning("the console's %s %s, after %s", self._name, what, place[0].__name__)


def _place(error: BaseException) -> _Place:
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return type(error), "", 0
    return type(error), traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
