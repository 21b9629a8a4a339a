"""The Celery message of a hint, as it lies on the queue.

Celery and kombu make one message for each model and priority, by their own code (task protocol 2 in kombu's virtual
envelope); each hint is that message with its own ids. Made anew for each, a message costs 600 us by `send_task`
and 120 us at best, in a thread of its own; so it costs 6, and many go in one round trip.
"""

from __future__ import annotations

import base64
import uuid
from typing import Any

from celery import Celery
from kombu.connection import Connection
from kombu.utils.json import dumps

# Stand-ins: no text of a message contains them otherwise, and JSON does not escape them.
_ID = "{{job id}}"
_BODY = "{{body}}"
_TAG = "{{delivery tag}}"


class HintMessages:
    """Makes messages for one task, whose arguments are the job's id and the model's name."""

    def __init__(self, app: Celery, task: str) -> None:
        self._app = app
        self._task = task
        self._made: dict[tuple[str, str, int], tuple[str, str]] = {}

    def message(self, job_id: str, *, model: str, queue: str, priority: int) -> bytes:
        """The message, with a delivery tag of its own."""
        template = self._made.get((model, queue, priority))
        if template is None:
            template = self._made[model, queue, priority] = self._make(model, queue, priority)
        envelope, body = template
        encoded = base64.b64encode(body.replace(_ID, job_id).encode()).decode()
        return envelope.replace(_ID, job_id).replace(_BODY, encoded).replace(_TAG, str(uuid.uuid4())).encode()

    def _make(self, model: str, queue: str, priority: int) -> tuple[str, str]:
        """The envelope and the body in it, with stand-ins, as kombu puts them on a queue."""
        message = self._app.amqp.as_task_v2(_ID, self._task, args=(_ID,), kwargs={"model": model}, ignore_result=True)
        with Connection("memory://") as connection:  # type: ignore[no-untyped-call]  # kombu has few types
            channel: Any = connection.channel()
            self._app.amqp.Producer(channel, auto_declare=False).publish(
                message.body,
                exchange="",
                routing_key=queue,
                priority=priority,
                serializer="json",
                headers=message.headers,
                **message.properties,
            )
            envelope = channel._get(queue)
        body = base64.b64decode(envelope["body"]).decode()
        envelope["body"] = _BODY
        envelope["properties"]["delivery_tag"] = _TAG
        return str(dumps(envelope)), body  # type: ignore[no-untyped-call]
