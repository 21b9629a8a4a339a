"""How many jobs a worker may have in hand: all that its engine holds, and of batches only what others leave."""

from __future__ import annotations

import threading

# Of an engine whose jobs are not set aside, batches leave one slot in so many to what is asked for one by one.
KEPT_SHARE = 8


class SlotPool:
    """The slots of one engine, as its worker gives them to messages. Safe to use from any thread.

    Where batch jobs are set aside for urgent ones (`yields`; the runner does it), urgent jobs may take all slots,
    whatever batches have. Where they are not, a few slots are kept from batches.
    """

    def __init__(self, slots: int, *, yields: bool) -> None:
        self.slots = slots
        self.yields = yields
        self._batch_slots = slots if yields else max(1, slots - max(1, slots // KEPT_SHARE))
        self._urgent = 0
        self._batch = 0
        self._lock = threading.Lock()

    def take(self, *, batch: bool) -> bool:
        """A job is in hand from now on. Whether there was room for it."""
        with self._lock:
            room = self.batch_room if batch else self.urgent_room
            if batch:
                self._batch += 1
            else:
                self._urgent += 1
        return room > 0

    def leave(self, *, batch: bool) -> None:
        """It is not any more."""
        with self._lock:
            if batch:
                self._batch -= 1
            else:
                self._urgent -= 1

    @property
    def urgent_room(self) -> int:
        """Jobs that are asked for one by one and could begin now."""
        return self.slots - self._urgent - (0 if self.yields else self._batch)

    @property
    def batch_room(self) -> int:
        """Jobs of batches that could begin now."""
        return self._batch_slots - self._urgent - self._batch
