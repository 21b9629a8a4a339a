"""Isolates the items of a loop: one that cannot be handled must stop neither the others nor the loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shared.runtime.outages import is_outage

logger = logging.getLogger(__name__)

# Delay before a faulty item is tried again. The fault may be in the code, so the log must not fill up with it.
RETRY_S = 60.0
# More faulty items than this are forgotten, and therefore tried again earlier.
LIMIT = 1000


class FaultyItems:
    """The items whose last handling failed. They are left out until they are due again."""

    def __init__(self, what: str, *, propagates: Callable[[BaseException], bool] = is_outage) -> None:
        """`what` names an item in the log. Errors for which `propagates` holds concern all items, and propagate."""
        self._what = what
        self._propagates = propagates
        self._retry_at: dict[str, float] = {}

    def ids(self) -> list[str]:
        """The ids of the items to leave out now."""
        now = time.monotonic()
        self._retry_at = {item_id: at for item_id, at in self._retry_at.items() if at > now}
        return list(self._retry_at)

    @contextmanager
    def isolated(self, item_id: str) -> Iterator[None]:
        """Handle one item. An error is logged with its traceback, and the item is left out for `RETRY_S` seconds."""
        try:
            yield
        except Exception as error:
            if self._propagates(error):
                raise
            logger.exception("%s=%s cannot be handled; trying again in %.0f s", self._what, item_id, RETRY_S)
            self.leave_out(item_id)

    def leave_out(self, item_id: str) -> None:
        """Leave an item out for `RETRY_S` seconds: handling it now changes nothing."""
        if len(self._retry_at) >= LIMIT:
            del self._retry_at[next(iter(self._retry_at))]
        self._retry_at[item_id] = time.monotonic() + RETRY_S
