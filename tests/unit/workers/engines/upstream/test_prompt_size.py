"""The estimate of a prompt's tokens."""

from __future__ import annotations

from shared.domain.request import GenerateRequest, Message
from workers.engines.upstream.prompt_size import estimated_tokens


def test_texts_count_by_their_length() -> None:
    assert estimated_tokens(GenerateRequest(prompt=[1, 2, 3])) == 3
    assert estimated_tokens(GenerateRequest(prompt="x" * 4000)) == 1001
    messages = [Message(role="system", content="x" * 400), Message(role="user", content="x" * 400)]
    assert estimated_tokens(GenerateRequest(messages=messages)) == 201
