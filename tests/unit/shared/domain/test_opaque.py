"""Opaque parts: the text that clients hold, and their places in a turn."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.domain.events import CallDelta, Delta, delta_event, merge_deltas
from shared.domain.job import Choice, ToolCall
from shared.domain.opaque import (
    MAX_ENCODED,
    REDACTED_THINKING,
    THINKING,
    TOOL_CALL,
    OpaquePart,
    Reasoning,
    decode,
    in_order,
)
from shared.domain.request import FunctionCall, GenerateRequest, Message, MessageToolCall
from shared.domain.transcript import Transcript
from workers.execution.log_writer import _groups

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=8,
)
PARTS = st.builds(
    OpaquePart,
    origin=st.sampled_from(["anthropic", "openai", "gemini", "open-router_2"]),
    kind=st.sampled_from([THINKING, REDACTED_THINKING, "other"]),
    data=JSON,
    call_id=st.none() | st.text(st.characters(codec="utf-8"), max_size=5),
    reasoning=st.integers(0, 2**40),
    text=st.integers(0, 2**40),
    calls=st.integers(0, 2**40),
)
SIGNED = OpaquePart("anthropic", THINKING, {"type": "thinking", "thinking": "hm", "signature": "s"})


@settings(max_examples=30)
@given(PARTS)
def test_a_part_is_read_from_its_text(part: OpaquePart) -> None:
    assert decode(part.encoded()) == part
    assert part.encoded().isascii()


def text_of(values: Any) -> str:
    return "hr1.anthropic." + base64.urlsafe_b64encode(orjson.dumps(values)).rstrip(b"=").decode()


DEEP: list[Any] = []
for _ in range(200):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "text",
    [
        None,
        1,
        "",
        "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pkiMOYds",
        "hr1.anthropic.",
        "hr1..e30",
        "hr1.Anthropic.e30",
        "hr2.anthropic.e30",
        "hr1.anthropic.e30",
        "hr1.anthropic.!!!!",
        "hr1.anthropic.a",
        SIGNED.encoded()[:-3],
        SIGNED.encoded() + "\n",
        text_of(["thinking", {}, None, -1, 0, 0]),
        text_of(["thinking", {}, 3, 0, 0, 0]),
        text_of(["thinking", {}, None, 0, 0]),
        text_of(["thinking", DEEP, None, 0, 0, 0]),
        text_of(["thinking", [[]] * 60_000, None, 0, 0, 0]),
        text_of(["thinking", "x" * MAX_ENCODED, None, 0, 0, 0]),
    ],
)
def test_other_texts_are_no_parts(text: Any) -> None:
    assert decode(text) is None


def test_a_later_version_may_add_members() -> None:
    assert decode(text_of(["thinking", {}, None, 0, 0, 0, "novel"])) == OpaquePart("anthropic", "thinking", {})


def block(name: str) -> OpaquePart:
    return OpaquePart("anthropic", THINKING, name)


DELTAS = [
    Delta(0, reasoning="one "),
    Delta(0, reasoning="two"),
    Delta(0, opaque=(block("first"),)),
    Delta(0, opaque=(OpaquePart("anthropic", REDACTED_THINKING, "secret"),)),
    Delta(0, "Well, "),
    Delta(0, "yes."),
    Delta(0, reasoning="three"),
    Delta(0, opaque=(block("second"),)),
    Delta(0, tool_calls=(CallDelta(0, "a", "f", "{}"),), opaque=(OpaquePart("gemini", TOOL_CALL, "sig", "a"),)),
    Delta(0, reasoning="four", opaque=(block("third"),)),
    Delta(0, tool_calls=(CallDelta(1, "b", "g", "{}"),)),
    Delta(0, "Done.", finish_reason="tool_calls"),
]
ORDER = [
    Reasoning("one two"), "first", "secret", "Well, yes.", Reasoning("three"), "second", "a", Reasoning("four"),
    "third", "Done.", "b",
]  # fmt: skip


def order(items: Any) -> list[Any]:
    return [
        item.data if isinstance(item, OpaquePart) else item.id if isinstance(item, ToolCall | MessageToolCall) else item
        for item in items
    ]


@settings(max_examples=20)
@given(st.lists(st.integers(1, 4), min_size=12, max_size=12))
def test_the_order_of_a_turn_survives_merging_and_storing(sizes: list[int]) -> None:
    """However the deltas are merged, the choice knows the order of blocks. (A text after a call precedes it.)"""
    transcript = Transcript(1)
    deltas = [Delta(item.index, item.text, reasoning=item.reasoning, tool_calls=item.tool_calls,
                    finish_reason=item.finish_reason, opaque=item.opaque) for item in DELTAS]  # fmt: skip
    for delta in deltas:
        delta.opaque = transcript.placed(delta)
        transcript.add(delta)
    logged = Transcript(1)
    at = 0
    for size in sizes:
        for group in _groups(deltas[at : at + size]) if deltas[at : at + size] else ():
            logged.add(delta_event(1, merge_deltas(group)).delta())
        at += size
    (choice,) = logged.choices()
    assert choice == transcript.choices()[0]
    stored = Choice.of(orjson.loads(orjson.dumps(choice.stored())))
    assert stored == choice
    assert order(in_order(choice.reasoning or "", [choice.text], choice.tool_calls, choice.opaque)) == ORDER

    calls = [MessageToolCall(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments))
             for call in choice.tool_calls]  # fmt: skip
    message = Message(
        role="assistant", content=choice.text, reasoning=choice.reasoning, tool_calls=calls, opaque=list(choice.opaque)
    )
    request = GenerateRequest(messages=[message])
    read = GenerateRequest.model_validate_json(request.model_dump_json(exclude_none=True, exclude_defaults=True))
    assert read == request
    assert read.messages is not None
    assert order(read.messages[0].in_order()) == ORDER
    part = read.messages[0].call_part("a")
    assert part is not None
    assert part.data == "sig"
    assert read.messages[0].call_part("b") is None


def test_events_keep_the_order_of_reasoning_text_and_parts() -> None:
    found = [merge_deltas(group) for group in _groups(DELTAS)]
    assert [(delta.reasoning, delta.text, [part.data for part in delta.opaque]) for delta in found] == [
        ("one two", "", ["first"]),
        ("", "", ["secret"]),
        ("", "Well, yes.", []),
        ("three", "", ["second"]),
        ("", "", ["sig"]),
        ("four", "", ["third"]),
        ("", "Done.", []),
    ]


def test_places_that_a_shortened_turn_does_not_have() -> None:
    part = SIGNED.at(reasoning=100, text=100, calls=3)
    assert list(in_order("hm", ["Yes"], [], [part])) == ["Yes", Reasoning("hm"), part]
    assert list(in_order("", [], [], [part, part])) == [part, part]


def test_reasoning_without_a_signature_comes_first() -> None:
    part = OpaquePart("openrouter", "details", {}).at(reasoning=2, text=3, calls=0)
    assert list(in_order("hm", ["Yes"], [], [part])) == [Reasoning("hm"), "Yes", part]


def test_a_model_gets_the_parts_of_its_provider_only() -> None:
    foreign = OpaquePart("openai", THINKING, {})
    request = GenerateRequest(
        messages=[
            Message(role="user", content="Hello"),
            Message(role="assistant", content="Hi", reasoning="hm", opaque=[SIGNED, foreign]),
            Message(role="assistant", opaque=[foreign]),
        ]
    )

    def parts(provider: str | None) -> list[Any]:
        return [message.opaque for message in request.for_provider(provider).messages or ()]

    assert parts("anthropic") == [None, [SIGNED], None]
    assert parts("openai") == [None, [foreign], [foreign]]
    assert parts(None) == [None, None, None]
    without = request.for_provider(None)
    assert without.messages is not None
    assert [message.content for message in without.messages] == ["Hello", "Hi", ""]
    assert without.for_provider(None) is without


def test_stored_parts_of_another_version_are_left_out() -> None:
    stored = {"role": "assistant", "content": "Hi", "opaque": [SIGNED.encoded(), "hr9.anthropic.x"]}
    assert Message.model_validate(stored).opaque == [SIGNED]
    choice = {"index": 0, "text": "Hi", "opaque": [SIGNED.encoded(), "hr9.anthropic.x"]}
    assert Choice.of(choice).opaque == (SIGNED,)
