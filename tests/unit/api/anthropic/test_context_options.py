"""Anthropic's parameters for long conversations are mapped to strategies."""

from __future__ import annotations

from typing import Any

import pytest

from api.anthropic.schemas import MessagesRequest
from shared.domain.answer_options import ContextOptions, ToolClearing


def parse(*edits: dict[str, Any], **fields: Any) -> MessagesRequest:
    body = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}], **fields}
    return MessagesRequest.model_validate({**body, "context_management": {"edits": list(edits)}})


def tokens(value: int) -> dict[str, Any]:
    return {"type": "input_tokens", "value": value}


def test_compaction() -> None:
    assert parse().context_options is None
    compact = {"type": "compact_20260112"}
    assert parse(compact).context_options == ContextOptions(strategy="summarize", trigger_tokens=150_000)
    small = parse({**compact, "trigger": tokens(5000)})
    assert small.context_options == ContextOptions(strategy="summarize", trigger_tokens=5000)
    assert parse(compact, context={"strategy": "error"}).context_options == ContextOptions()
    assert parse({"type": "clear_thinking_20251015", "keep": "all"}).context_options is None


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        ({}, ToolClearing(trigger_tokens=100_000)),
        ({"trigger": tokens(30_000)}, ToolClearing(trigger_tokens=30_000)),
        ({"trigger": {"type": "tool_uses", "value": 9}}, ToolClearing(trigger_uses=9)),
        ({"keep": {"type": "tool_uses", "value": 0}}, ToolClearing(trigger_tokens=100_000, keep=0)),
        ({"clear_at_least": tokens(500)}, ToolClearing(trigger_tokens=100_000, at_least=500)),
        ({"exclude_tools": ["a"]}, ToolClearing(trigger_tokens=100_000, exclude=frozenset({"a"}))),
        ({"clear_tool_inputs": True}, ToolClearing(trigger_tokens=100_000, inputs=True)),
        ({"clear_tool_inputs": ["a"]}, ToolClearing(trigger_tokens=100_000, inputs=frozenset({"a"}))),
    ],
)
def test_clearing_of_tool_results(edit: dict[str, Any], expected: ToolClearing) -> None:
    assert parse({"type": "clear_tool_uses_20250919", **edit}).tool_clearing == expected
    assert parse().tool_clearing is None
