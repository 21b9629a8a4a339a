"""Earlier turns of messages and responses as clients send them back, without what was empty."""

from __future__ import annotations

from typing import Any

import pytest

from api.anthropic.requests import conversation as anthropic_conversation
from api.anthropic.schemas import MessagesRequest
from api.responses.messages import conversation
from api.responses.schemas import ResponseCreate
from shared.domain.request import Message
from tests.support.members import read

USER = {"role": "user", "content": "hi"}
ABSENT = object()
EMPTY = pytest.mark.parametrize("nothing", [ABSENT, None, [], {}], ids=["absent", "null", "list", "object"])


def member(name: str, nothing: object) -> dict[str, Any]:
    return {} if nothing is ABSENT else {name: nothing}


def arguments_of(messages: list[Message]) -> str:
    (call,) = messages[0].tool_calls or []
    return call.function.arguments


@EMPTY
def test_messages(nothing: object) -> None:
    turns = [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", **member("input", nothing)}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", **member("content", nothing)}]},
        {"role": "assistant", **member("content", nothing)},
        USER,
    ]
    body = read(MessagesRequest, {"model": "m", "max_tokens": 9, "messages": [USER, *turns]})
    messages = (anthropic_conversation(MessagesRequest.model_validate(body)).messages or [])[1:]
    assert arguments_of(messages) == "{}"
    assert [message.content for message in messages[1:]] == ["", "", "hi"]


@EMPTY
def test_responses(nothing: object) -> None:
    items = [
        {"type": "function_call", "call_id": "c", "name": "f", **member("arguments", nothing)},
        {"type": "function_call_output", "call_id": "c", **member("output", nothing)},
        USER,
    ]
    body = ResponseCreate.model_validate(read(ResponseCreate, {"model": "m", "input": [USER, *items]}))
    messages = conversation(None, None, body.input)[1:]
    assert arguments_of(messages) == "{}"
    assert [message.content for message in messages[1:]] == ["", "hi"]
