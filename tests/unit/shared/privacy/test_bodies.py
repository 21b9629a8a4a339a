"""The redaction of bodies: all texts of a request and an answer, as the rows of jobs have them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.content import ImagePart, TextPart
from shared.domain.job import Choice, ToolCall
from shared.domain.opaque import OpaquePart
from shared.domain.redaction_rules import OwnRule, RedactionKind, RedactionRules
from shared.domain.request import FunctionCall, GenerateRequest, Message, MessageToolCall
from shared.privacy.redaction import Redactor

REDACTOR = Redactor()
CARD = "4111 1111 1111 1111"


def redacted(body: dict[str, Any]) -> dict[str, Any]:
    return REDACTOR.redact_body(body)[0]


def stored(*messages: Message) -> dict[str, Any]:
    """A request as the row of its job has it."""
    request = GenerateRequest(messages=list(messages))
    return json.loads(request.model_dump_json(exclude_none=True, exclude_defaults=True))  # type: ignore[no-any-return]


def test_all_texts_of_a_conversation() -> None:
    call = MessageToolCall(id="call_1", function=FunctionCall(name="pay", arguments=json.dumps({"card": CARD})))
    request = stored(
        Message(role="system", content="Mail to a@b.de"),
        Message(role="user", content=[TextPart(type="text", text=f"My card: {CARD}")]),
        Message(role="assistant", tool_calls=[call], reasoning=f"They gave {CARD}"),
        Message(role="tool", content=f"paid with {CARD}", tool_call_id="call_1"),
    )
    output = [Choice(0, f"Paid with {CARD}", tool_calls=(ToolCall("call_2", "mail", '{"to":"a@b.de"}'),)).stored()]
    body, counts = REDACTOR.redact_body({"request": request, "output": output})
    assert CARD not in json.dumps(body)
    assert "a@b.de" not in json.dumps(body)
    assert counts == {"card": 5, "email": 2}
    assert body["request"]["messages"][1]["content"] == [{"type": "text", "text": "My card: [CARD]"}]
    assert json.loads(body["request"]["messages"][2]["tool_calls"][0]["function"]["arguments"]) == {"card": "[CARD]"}
    assert body["output"][0]["tool_calls"][0]["arguments"] == '{"to":"[EMAIL]"}'


def test_arguments_remain_json() -> None:
    arguments = '{"card": 4111111111111111, "note": "caf\\u00e9 \\u0061@b.de", "n": 3}'
    body = redacted({"arguments": arguments})
    assert json.loads(body["arguments"]) == {"card": "[CARD]", "note": "café [EMAIL]", "n": 3}
    assert redacted({"arguments": '{"n":  1}'}) == {"arguments": '{"n":  1}'}, "unchanged, with its spaces"
    assert redacted({"arguments": '{"card": "4111 1111 1111 1111'}) == {"arguments": '{"card": "[CARD]'}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("password", "hunter2!", "[SECRET]"),
        ("Password", "HUNTER2!", "[SECRET]"),
        ("db_password", "hunter2! and more", "[SECRET] and more"),
        ("password", 12345678, "[SECRET]"),
        ("x-api-key", "abcd1234efgh", "[SECRET]"),
        ("aws_secret_access_key", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "[SECRET]"),
        ("Authorization", "Basic dXNlcjpwYXNz", "Basic [SECRET]"),
        ("パスワード", "hunter2!", "[SECRET]"),
        # As in texts: words and short values are no secrets, and neither is what another name says.
        ("password", "required", "required"),
        ("password", "abc1", "abc1"),
        ("password", True, True),
        ("password", ["hunter2!"], ["hunter2!"]),
        ("password_hint", "hunter2!", "hunter2!"),
        ("max_tokens", 12345678, 12345678),
        ("user", "hunter2!", "hunter2!"),
    ],
)
def test_the_name_of_a_member_says_that_its_value_is_secret(name: str, value: object, expected: object) -> None:
    call = ToolCall("call_1", "login", json.dumps({name: value, "n": 1}))
    output = [Choice(0, "", tool_calls=(call,)).stored()]
    body, counts = REDACTOR.redact_body({"output": output, "metadata": {name: value}})
    found = json.loads(body["output"][0]["tool_calls"][0]["arguments"])
    assert (found, body["metadata"]) == ({name: expected, "n": 1}, {name: expected})
    assert counts == ({} if value == expected else {"secret": 2})
    assert redacted(body) == body
    without = Redactor(RedactionRules(kinds=(RedactionKind.EMAIL,)))
    assert without.redact_body({"metadata": {name: value}}) == ({"metadata": {name: value}}, {})


def test_the_parameters_of_a_request_are_no_secrets() -> None:
    tool = {"name": "token", "description": "a1b2c3d4"}
    request = {"request": {"sampling": {"max_tokens": 4096}, "chat": {"tools": [tool]}}}
    assert redacted(request) == request


def test_members_with_the_same_name() -> None:
    """Of these, a parser keeps the last one: the others would be logged as they are."""
    for first in (json.dumps(CARD), "4111111111111111", '["a@b.de"]'):
        body = redacted({"arguments": f'{{"card": {first}, "card": "x"}}'})
        assert json.loads(body["arguments"]) == {"card": "x"}
    assert redacted({"arguments": r'{"say": "\"hi\" \\ "}'}) == {"arguments": r'{"say": "\"hi\" \\ "}'}, "unchanged"


def test_json_that_was_cut_off() -> None:
    """As the arguments of a call are, if the answer has as many tokens as it may."""
    whole = json.dumps({"note": 'Call\n+49 30 901820\nDE89370400440532013000\nor mail "a@b.de"'})
    body = redacted({"arguments": whole[:-1], "lines": f'{whole}\n{{"n": 1}}'})
    for text in body.values():
        assert 'Call\n[PHONE]\n[IBAN]\nor mail "[EMAIL]' in text


def test_names_of_members() -> None:
    assert redacted({"a@b.de": 1, "c@d.de": 2}) == {"[EMAIL]": 1, "[EMAIL]_2": 2}
    body = redacted({"[EMAIL]_2": 0, "a@b.de": 1, "c@d.de": 2, "e@f.de": 3})
    assert body == {"[EMAIL]_2": 0, "[EMAIL]": 1, "[EMAIL]_3": 2, "[EMAIL]_4": 3}
    assert redacted(body) == body


def test_many_members_with_the_same_redacted_name() -> None:
    """The time is linear: a longer name for each of them would take minutes."""
    count = 20_000
    body = redacted({"arguments": json.dumps({f"n{number}@b.de": number for number in range(count)})})
    members = json.loads(body["arguments"])
    assert list(members.values()) == list(range(count))
    assert list(members)[-1] == f"[EMAIL]_{count}"


def test_the_structure_of_a_body_remains_whatever_the_rules_are() -> None:
    redactor = Redactor(RedactionRules(own=(OwnRule(name="words", words=("request", "content", "text", "user")),)))
    body, counts = redactor.redact_body({"request": stored(Message(role="user", content="my content, a"))})
    (message,) = body["request"]["messages"]
    assert message["content"] == "my [WORDS], a"
    assert (message["role"], counts) == ("user", {"words": 1})


def test_images_and_files_are_replaced_by_their_size() -> None:
    data = base64.b64encode(bytes(3000)).decode()
    image = ImagePart(type="image", media_type="image/png", data=data)
    request = stored(Message(role="user", content=[TextPart(type="text", text="What is this?"), image]))
    (part,) = redacted(request)["messages"][0]["content"][1:]
    assert part == {"type": "image", "media_type": "image/png", "data": "[DATA image/png 3000 bytes]"}
    inline = redacted({"text": f"see data:image/png;base64,{data} here"})
    assert inline == {"text": "see [DATA image/png 3000 bytes] here"}


def test_what_cannot_be_searched_is_replaced_by_its_size() -> None:
    opaque = OpaquePart("anthropic", "thinking", {"thinking": CARD}).encoded()
    body = redacted(
        {
            "request": {"prompt": [1, 2, 3], "sampling": {"stop_token_ids": [1, 2]}},
            "output": [{"opaque": [opaque], "logprobs": [[0, "4111", -0.1]], "text": "x"}],
        }
    )
    assert body == {
        "request": {"prompt": "[TOKENS 3]", "sampling": {"stop_token_ids": [1, 2]}},
        "output": [{"opaque": [f"[OPAQUE {len(opaque)} characters]"], "logprobs": "[TOKENS 1]", "text": "x"}],
    }


def test_the_body_is_not_changed() -> None:
    body = {"messages": [{"content": CARD}]}
    redacted(body)
    assert body == {"messages": [{"content": CARD}]}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=10), JSON, max_size=5))
def test_any_body_can_be_redacted(body: dict[str, Any]) -> None:
    found, counts = REDACTOR.redact_body(body)
    assert json.loads(json.dumps(found)) == found
    again, more = REDACTOR.redact_body(found)
    assert (again, more) == (found, {})
    assert counts or found == body or "[" in json.dumps(found)
