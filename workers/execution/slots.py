"""Slot allocation: batch jobs get only the slots that urgent jobs leave free."""

from __future__ import annotations

import threading
from collections.abc import Callable

# Without preemption, one slot in this many is reserved for urgent jobs.
RESERVED_SHARE = 8


class SlotPool:
    """Counts the jobs in the slots of one engine. Methods may be called from any thread.

    If batch jobs yield, that is, the runner preempts them for urgent jobs, urgent jobs may take all slots regardless of
    batch jobs. Otherwise some slots are reserved for urgent jobs.
    """

    def __init__(self, slots: int, *, yields: bool) -> None:
        self.slots = slots
        self.yields = yields
        self._batch_slots = self._for_batch()
        self._urgent = 0
        self._batch = 0
        self._lock = threading.Lock()
        # Called after a resize, in its thread.
        self.on_resize: Callable[[], None] = lambda: None

    def resize(self, slots: int) -> None:
        """Change the number of slots. Jobs in slots that are removed finish."""
        with self._lock:
            self.slots = slots
            self._batch_slots = self._for_batch()
        self.on_resize()

    def acquire(self, *, batch: bool) -> bool:
        """Count a job in. Returns whether there was a free slot for it."""
        with self._lock:
            room = self.batch_room if batch else self.urgent_room
            if batch:
                self._batch += 1
            else:
                self._urgent += 1
        return room > 0

    def release(self, *, batch: bool) -> None:
        """Count a job out."""
        with self._lock:
            if batch:
                self._batch -= 1
            else:
                self._urgent -= 1

    @property
    def urgent_room(self) -> int:
        """The number of urgent jobs that could start now."""
        return self.slots - self._urgent - (0 if self.yields else self._batch)

    def _for_batch(self) -> int:
        return self.slots if self.yields else max(1, self.slots - max(1, self.slots // RESERVED_SHARE))

    @property
    def batch_room(self) -> int:
        """The number of batch jobs that could start now; negative if urgent jobs have taken slots of running ones."""
        return self._batch_slots - self._urgent - self._batch
