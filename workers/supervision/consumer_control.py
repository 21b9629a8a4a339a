"""Controls Celery's consumer: pauses and resumes it, and wakes it when slots become free."""

from __future__ import annotations

from typing import Any


class ConsumerControl:
    """One queue of a Celery worker. Methods may be called from any thread; they run on Celery's own."""

    def __init__(self, worker: Any, queue: str) -> None:
        self._worker = worker
        self._queue = queue

    def pause(self) -> None:
        """Stop consuming from the queue."""
        consumer = self._worker.consumer
        consumer.call_soon(consumer.cancel_task_queue, self._queue)

    def poll(self) -> None:
        """Check the queue now, because another message can be accepted.

        A consumer at its prefetch limit sleeps, and an acknowledgement by another thread does not wake it: it would
        notice at its next timer, up to a second later. One that waits for urgent messages only would not check for
        batch messages before an urgent one arrives.
        """
        consumer = self._worker.consumer
        consumer.call_soon(_poll_batch, consumer)

    def resume(self) -> None:
        """Consume from the queue again."""
        consumer = self._worker.consumer
        consumer.call_soon(consumer.add_task_queue, self._queue)


def _poll_batch(consumer: Any) -> None:
    """Runs on Celery's thread, which the call has woken. A consumer that is reconnecting polls by itself later."""
    if consumer.task_consumer is not None:
        consumer.task_consumer.channel.poll_batch()
