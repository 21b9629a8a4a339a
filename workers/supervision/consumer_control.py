"""Celery's consumer, told to stop and to go on taking messages while the process lives."""

from __future__ import annotations

from typing import Any


class ConsumerControl:
    """One queue of one Celery worker. Safe to call from any thread: Celery does it on its own."""

    def __init__(self, worker: Any, queue: str) -> None:
        self._worker = worker
        self._queue = queue

    def pause(self) -> None:
        """Take nothing more from the queue."""
        consumer = self._worker.consumer
        consumer.call_soon(consumer.cancel_task_queue, self._queue)

    def look(self) -> None:
        """Look at the queue again now: there is room for another message.

        The consumer sleeps with its hands full, and an acknowledgement by another thread does not wake it: it would
        find out at its next timer, up to a second later. Where it waits for urgent messages only, it would not
        look for batches' before one comes.
        """
        consumer = self._worker.consumer
        consumer.call_soon(_look_for_batch, consumer)

    def resume(self) -> None:
        """Take from the queue again."""
        consumer = self._worker.consumer
        consumer.call_soon(consumer.add_task_queue, self._queue)


def _look_for_batch(consumer: Any) -> None:
    """On Celery's thread, which its being called has woken. Without a consumer the next one looks by itself."""
    if consumer.task_consumer is not None:
        consumer.task_consumer.channel.look_for_batch()
