"""The maximum size of a continued conversation."""

from __future__ import annotations

import pytest

from api.responses.limits import ConversationLimits
from shared.domain.errors import InvalidRequest
from shared.domain.request import FunctionCall, GenerateRequest, Message, MessageToolCall

LIMITS = ConversationLimits(max_bytes=3000, max_messages=9)
CALL = MessageToolCall(id="c", function=FunctionCall(name="f" * 2000, arguments="{}"))


@pytest.mark.parametrize(
    "message",
    [
        Message(role="user", content="x" * 3000),
        Message(role="user", content="語" * 1000),
        Message(role="assistant", content="", reasoning="🌊" * 800),
        Message(role="assistant", tool_calls=[CALL, CALL]),
    ],
    ids=["ascii", "three-bytes-each", "four-bytes-each", "names-of-functions"],
)
def test_the_bytes_of_all_texts_count(message: Message) -> None:
    LIMITS.check(GenerateRequest(messages=[Message(role="user", content="x" * 2900)]))
    with pytest.raises(InvalidRequest, match="the maximum is 3000"):
        LIMITS.check(GenerateRequest(messages=[message]))
