"""Celery's consumer, told to stop and to go on taking messages while the process lives."""

from __future__ import annotations

from typing import Any


class Intake:
    """One queue of one Celery worker. Safe to call from any thread: Celery does it on its own."""

    def __init__(self, worker: Any, queue: str) -> None:
        self._worker = worker
        self._queue = queue

    def pause(self) -> None:
        """Take nothing more from the queue."""
        consumer = self._worker.consumer
        consumer.call_soon(consumer.cancel_task_queue, self._queue)

    def resume(self) -> None:
        """Take from the queue again."""
        consumer = self._worker.consumer
        consumer.call_soon(consumer.add_task_queue, self._queue)
