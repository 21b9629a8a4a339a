"""Celery messages for hints: made from templates, and read strictly.

Celery and kombu build one message for each model and priority (task protocol 2 in kombu's virtual envelope); each hint
is a copy of it with its own ids. `send_task` takes 600 us for a message, and 120 us at best in a separate thread;
a copy takes 6 us, and many are sent in one round trip.
"""

from __future__ import annotations

import base64
import uuid
from typing import Any, NamedTuple

import orjson
from celery import Celery
from kombu.connection import Connection
from kombu.utils.json import dumps, loads

from shared.domain.errors import HeadraceError
from shared.domain.job import is_job_id

# Placeholders: they do not occur in a message otherwise, and JSON does not escape them.
_ID = "{{job id}}"
_BODY = "{{body}}"
_TAG = "{{delivery tag}}"

# Several times the size of a message.
MAX_BYTES = 16 * 1024


class MalformedMessage(HeadraceError):
    """Not a message that this version, an older or a newer one sends for a hint."""


class ReceivedHint(NamedTuple):
    """What a message says. All else in it is ignored."""

    job_id: str
    model: str
    priority: int


def read_message(raw: bytes, task: str) -> ReceivedHint:
    """Read a message from a queue. Anything may be on a queue that others can write to.

    Raises:
        MalformedMessage: it is not a message for this task, or is larger than `MAX_BYTES`.
    """
    if len(raw) > MAX_BYTES:
        raise MalformedMessage(f"{len(raw)} bytes")
    try:
        envelope = orjson.loads(raw)
        headers, properties = envelope["headers"], envelope["properties"]
        if "compression" in headers or properties["body_encoding"] != "base64":
            raise MalformedMessage("an unknown encoding")
        (job_id, *_), arguments, *_ = orjson.loads(base64.b64decode(envelope["body"], validate=True))
        name, model = headers["task"], arguments["model"]
        priority = properties.get("priority") or 0
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MalformedMessage(f"not a task message ({type(error).__name__})") from error
    if name != task:
        raise MalformedMessage("another task")
    if not isinstance(job_id, str) or headers.get("id") != job_id or not is_job_id(job_id):
        raise MalformedMessage("not a job's id")
    if not isinstance(model, str) or type(priority) is not int or not 0 <= priority <= 9:
        raise MalformedMessage("not a model and a priority")
    return ReceivedHint(job_id, model, priority)


class HintMessages:
    """Builds messages for one task, whose arguments are the job's id and the model's name."""

    def __init__(self, app: Celery, task: str) -> None:
        self._app = app
        self._task = task
        self._templates: dict[tuple[str, str, int], tuple[str, str]] = {}

    def message(self, job_id: str, *, model: str, queue: str, priority: int) -> bytes:
        """The message for a job, with a new delivery tag."""
        template = self._templates.get((model, queue, priority))
        if template is None:
            template = self._templates[model, queue, priority] = self._build(model, queue, priority)
        envelope, body = template
        encoded = base64.b64encode(body.replace(_ID, job_id).encode()).decode()
        return envelope.replace(_ID, job_id).replace(_BODY, encoded).replace(_TAG, str(uuid.uuid4())).encode()

    def envelope(self, hint: ReceivedHint, queue: str) -> Any:
        """The message for a job as kombu reads it from a queue, with nothing of the received one but the hint."""
        message = self.message(hint.job_id, model=hint.model, queue=queue, priority=hint.priority)
        return loads(message.decode())  # type: ignore[no-untyped-call]  # kombu has few types

    def _build(self, model: str, queue: str, priority: int) -> tuple[str, str]:
        """An envelope and its body, with placeholders, as kombu puts them on a queue."""
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
