"""Messages that no process of Headrace sends are dropped and counted, whatever is in them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.redis.job_queue import TASK, celery_app
from shared.redis.message_template import MAX_BYTES, HintMessages
from tests.support.metrics import worker_metrics
from workers.consumer.message_filter import COMMANDS, MessageFilter

JOB = "job_0123456789abcdef0123456789abcdef"
QUEUE = "headrace.sim"
APP = celery_app("redis://nowhere")
MESSAGES = HintMessages(APP, TASK)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=10,
)


def message_filter() -> MessageFilter:
    return MessageFilter(APP, ["sim", "tone"], worker_metrics("sim"))


def hint(**changes: Any) -> dict[str, Any]:
    """A hint's message with changes of its envelope, its headers and its properties."""
    message = json.loads(MESSAGES.message(JOB, model="sim", queue=QUEUE, priority=3))
    for part in ("headers", "properties"):
        message[part] |= changes.pop(part, {})
    return {**message, **changes}


def encoded(body: Any) -> str:
    return base64.b64encode(json.dumps(body).encode()).decode()


def command(method: Any = "ping", **changes: Any) -> dict[str, Any]:
    """A remote control command as kombu reads it."""
    body = {"method": method, "arguments": {}, "destination": None, "pattern": None, "matcher": None}
    properties = {
        "delivery_mode": 2,
        "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": "3f2a",
    }
    return {
        "body": encoded(body | changes.pop("body", {})),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"clock": 1, "expires": 1e9} | changes.pop("headers", {}),
        "properties": properties | changes.pop("properties", {}),
        **changes,
    }


def test_a_hint_is_passed_on_and_only_the_hint() -> None:
    """Fields that would delay, revoke or retry a task, or call back, are not."""
    changes: dict[str, Any] = {"eta": "2999-01-01", "expires": 1, "timelimit": "x", "retries": 10**6}
    passed = message_filter().from_queue(json.dumps(hint(headers=changes)).encode(), QUEUE)
    expected = hint()
    for message in (passed, expected):
        del message["properties"]["delivery_tag"]
    assert passed == expected


def test_a_hint_for_an_adapter_of_the_model_is_passed_on() -> None:
    passed = message_filter().from_queue(json.dumps(hint(body=encoded([[JOB], {"model": "tone"}, {}]))).encode(), QUEUE)
    assert json.loads(base64.b64decode(passed["body"]))[1] == {"model": "tone"}


HOSTILE = {
    "empty": b"",
    "not JSON": b"\x80\x04\x95pickle",
    "not UTF-8": b'{"body": "\xff"}',
    "deep": b"[" * 5000,
    "a number": b"1e400",
    "null": b"null",
    "a list": b"[]",
    "an empty object": b"{}",
    "a huge message": json.dumps(hint(shadow="x" * MAX_BYTES)).encode(),
    "another task": hint(headers={"task": "celery.chord"}),
    "no task": hint(headers={"task": None}),
    "another model": hint(body=encoded([[JOB], {"model": "big"}, {}])),
    "no model": hint(body=encoded([[JOB], {}, {}])),
    "a model of another type": hint(body=encoded([[JOB], {"model": ["sim"]}, {}])),
    "no arguments": hint(body=encoded([[], {"model": "sim"}, {}])),
    "a body that is no list": hint(body=encoded({"args": [JOB]})),
    "a body that is not base64": hint(body="{}"),
    "a body of another type": hint(body=[1]),
    "an id of another form": hint(body=encoded([["x"], {"model": "sim"}, {}]), headers={"id": "x"}),
    "an id of another type": hint(body=encoded([[7], {"model": "sim"}, {}]), headers={"id": 7}),
    "two ids": hint(headers={"id": "job_" + "f" * 32}),
    "headers of another type": hint() | {"headers": []},
    "no headers": {name: value for name, value in hint().items() if name != "headers"},
    "properties of another type": hint() | {"properties": "x"},
    "compressed": hint(headers={"compression": "application/x-gzip"}),
    "another encoding": hint(properties={"body_encoding": "utf-8"}),
    "a priority of another type": hint(properties={"priority": "high"}),
    "a priority that does not exist": hint(properties={"priority": 10**30}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_malformed_hint_is_dropped(name: str) -> None:
    raw = HOSTILE[name]
    dropped = message_filter()
    assert dropped.from_queue(raw if isinstance(raw, bytes) else json.dumps(raw).encode(), QUEUE) is None
    assert dropped._dropped.labels("queue")._value.get() == 1


@given(st.binary() | ANYTHING.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_on_the_queue_raise_an_error(raw: bytes) -> None:
    assert message_filter().from_queue(raw, QUEUE) is None


@given(st.sampled_from(sorted(hint())), ANYTHING)
def test_no_member_of_a_hint_raises_an_error(member: str, value: Any) -> None:
    message_filter().from_queue(json.dumps(hint() | {member: value}).encode(), QUEUE)


def test_the_commands_that_flower_needs_are_accepted() -> None:
    accept = message_filter().accepts_command
    reply_to = {"exchange": "reply.celery.pidbox", "routing_key": "4f"}
    for method in COMMANDS:
        assert accept(command(method, body={"reply_to": reply_to, "ticket": "4f", "destination": ["sim@host"]}))
    assert accept(command("revoke", body={"arguments": {"task_id": JOB, "terminate": True, "signal": "SIGTERM"}}))


@pytest.mark.parametrize(
    "method",
    [
        "add_consumer",
        "autoscale",
        "cancel_consumer",
        "election",
        "hello",
        "memdump",
        "objgraph",
        "pool_grow",
        "pool_restart",
        "pool_shrink",
        "rate_limit",
        "revoke_by_stamped_headers",
        "shutdown",
        "time_limit",
        "no_such_command",
        None,
        ["ping"],
        {"a": 1},
    ],
)
def test_commands_that_change_a_worker_are_dropped(method: Any) -> None:
    assert not message_filter().accepts_command(command(method))


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        "x",
        {},
        command(body={"arguments": "x"}),
        command(body={"arguments": [1]}),
        command(body={"destination": "sim@host"}),
        command(body={"reply_to": "x"}),
        command(body={"reply_to": {"exchange": 1, "routing_key": "a"}}),
        command(body={"reply_to": {}}),
        command(body={"ticket": {}}),
        command(body={"self": 1}),
        command(headers={"clock": "x"}),
        command(headers={"compression": "application/x-gzip"}),
        command(properties={"delivery_tag": None}),
        command(properties={"delivery_info": None}),
        command(properties={"body_encoding": None}),
        command() | {"content-type": "application/x-python-serialize"},
        command() | {"body": encoded("ping")},
        command() | {"body": encoded([])},
        command() | {"body": "%"},
        command() | {"headers": None},
    ],
    ids=lambda message: json.dumps(message)[-60:],
)
def test_a_malformed_command_is_dropped(message: Any) -> None:
    dropped = message_filter()
    assert not dropped.accepts_command(message)
    assert dropped._dropped.labels("control")._value.get() == 1


@given(ANYTHING | st.builds(lambda member, value: command() | {member: value}, st.sampled_from(["body"]), ANYTHING))
def test_no_value_on_the_control_channel_raises_an_error(message: Any) -> None:
    message_filter().accepts_command(message)
