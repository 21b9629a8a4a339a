"""Drops messages that nobody but an outsider or a fault can have sent, before Celery handles them.

Whoever can write to Redis can put anything on a queue or on a channel. Celery trusts what it reads: some messages raise
an error that ends the worker, and its remote control has commands that stop it or its consumer. Here a message from the
queue is reduced to a job's id, its model and its priority, and only the control commands that Flower needs are passed
on. Nothing is lost with a dropped message: the rows of jobs without one are found by `workers.supervision.redelivery`.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Collection
from typing import Any

import orjson
from celery import Celery

from shared.redis.job_queue import TASK
from shared.redis.message_template import HintMessages, MalformedMessage, read_message
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

# Commands that report a worker's state, that Flower's events need, and that cancel a job. The others change or stop a
# worker (`shutdown`, `pool_restart`, `cancel_consumer`, ...), which is its supervisor's business.
COMMANDS = frozenset(
    (
        "active",
        "active_queues",
        "clock",
        "conf",
        "disable_events",
        "enable_events",
        "heartbeat",
        "ping",
        "query_task",
        "registered",
        "report",
        "reserved",
        "revoke",
        "revoked",
        "scheduled",
        "stats",
        "terminate",
    )
)
# A command names tasks or workers, and nothing larger.
MAX_COMMAND_BYTES = 64 * 1024


class MessageFilter:
    """Filters the messages for the worker of a model and its adapters. Counts and logs those that it drops."""

    def __init__(self, app: Celery, models: Collection[str], metrics: Metrics) -> None:
        self._messages = HintMessages(app, TASK)
        self._models = frozenset(models)
        self._dropped = metrics.malformed_messages

    def from_queue(self, raw: bytes, queue: str) -> Any:
        """The message that Celery receives for a message of the queue; None if it is dropped."""
        try:
            hint = read_message(raw, TASK)
        except MalformedMessage as error:
            self.drop("queue", str(error))
            return None
        if hint.model not in self._models:
            self.drop("queue", "a job of another model")
            return None
        return self._messages.envelope(hint, queue)

    def accepts_command(self, message: Any) -> bool:
        """Whether a message of the control channel is passed on to Celery."""
        problem = _problem(message)
        if problem is not None:
            self.drop("control", problem)
        return problem is None

    def drop(self, source: str, reason: str) -> None:
        self._dropped.labels(source).inc()
        logger.warning("a malformed message was dropped: %s source=%s", reason, source)


def _problem(message: Any) -> str | None:
    """What is wrong with a control message, as kombu has read it; None if it is well-formed and allowed."""
    try:
        properties, headers = message["properties"], message["headers"]
        json_encoded = (message["content-type"], properties["body_encoding"]) == ("application/json", "base64")
        if not json_encoded or "compression" in headers:
            return "an unknown encoding"
        clock, tag, exchange = headers.get("clock") or 0, properties["delivery_tag"], properties["delivery_info"]
        body = orjson.loads(base64.b64decode(message["body"], validate=True))
        method, arguments, reply_to = body["method"], body.get("arguments"), body.get("reply_to")
        destination = body.get("destination")
        routed = reply_to is None or {type(reply_to["exchange"]), type(reply_to["routing_key"])} == {str}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return f"not a command ({type(error).__name__})"
    if not isinstance(method, str) or method not in COMMANDS:
        return "a command that workers do not accept"
    known = {"method", "arguments", "reply_to", "destination", "ticket", "pattern", "matcher"}
    if (
        not body.keys() <= known
        or not routed
        or type(clock) is not int
        or not isinstance(tag, str)
        or not isinstance(exchange, dict)
        or not isinstance(arguments, dict | None)
        or not isinstance(destination, list | None)
        or not all(isinstance(body.get(name), str | None) for name in ("ticket", "pattern", "matcher"))
    ):
        return "a command with members of wrong types"
    return None
