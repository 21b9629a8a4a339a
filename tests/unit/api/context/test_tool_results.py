"""Old results of tools are cleared, so that their calls stay, and the beginning stays the same for many turns."""

from __future__ import annotations

from dataclasses import replace

import hypothesis
import hypothesis.strategies as some
import pytest

from api.context.message_counts import WordCounts
from api.context.shortening import Shortening
from api.context.tool_results import PLACEHOLDER, Cleared, clear
from api.context.window import ContextWindow
from api.keys.principal import Principal
from shared.config.models.loader import Registry
from shared.config.models.simulated import SimulatedModel
from shared.domain.answer_options import ContextOptions, RequestOptions, ToolClearing
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import FunctionCall, GenerateRequest, Message, MessageToolCall
from tests.support.examples import example_count
from tests.unit.api.context.histories import history

COUNTS = WordCounts()
RESULT = "result " * 99


def conversation(uses: int, name: str = "f") -> list[Message]:
    """A question, and uses of a tool with results of 100 tokens."""
    messages = [Message(role="user", content="do it")]
    for number in range(uses):
        function = FunctionCall(name=name, arguments='{"a": 1}')
        call = MessageToolCall(id=f"c{number}", function=function)
        messages.append(Message(role="assistant", tool_calls=[call], content="x"))
        messages.append(Message(role="tool", tool_call_id=f"c{number}", content=RESULT))
    return messages


def cleared(messages: list[Message], clearing: ToolClearing, fixed: int = 0) -> Cleared:
    return clear(messages, list(map(COUNTS.message, messages)), clearing, fixed=fixed, count=COUNTS.message)


def shown(messages: list[Message]) -> str:
    """Which results are left: x is a cleared one."""
    return "".join("x" if m.content == PLACEHOLDER else "r" for m in messages if m.role == "tool")


@pytest.mark.parametrize(
    ("clearing", "left"),
    [
        (ToolClearing(trigger_tokens=10_000), "rrrrrrrr"),
        (ToolClearing(trigger_tokens=500), "xxxxrrrr"),
        (ToolClearing(trigger_tokens=500, keep=1), "xxxxrrrr"),
        (ToolClearing(trigger_tokens=500, keep=0), "xxxxxrrr"),
        (ToolClearing(trigger_tokens=800, keep=8), "rrrrrrrr"),
        (ToolClearing(trigger_tokens=500, exclude=frozenset({"f"})), "rrrrrrrr"),
        (ToolClearing(trigger_uses=4), "xxxxrrrr"),
        (ToolClearing(trigger_uses=20), "rrrrrrrr"),
        (ToolClearing(trigger_tokens=500, keep=3, at_least=400), "xxxxxrrr"),
        (ToolClearing(trigger_tokens=500, keep=3, at_least=4000), "rrrrrrrr"),
    ],
)
def test_which_results_are_cleared(clearing: ToolClearing, left: str) -> None:
    messages = conversation(8)
    result = cleared(messages, clearing)
    assert shown(result.messages) == left
    assert result.uses == left.count("x")
    assert result.tokens == list(map(COUNTS.message, result.messages))
    assert result.saved == sum(map(COUNTS.message, messages)) - sum(result.tokens)
    assert [m.role for m in result.messages] == [m.role for m in messages]
    assert shown(messages) == "rrrrrrrr"  # the request is not changed


def test_arguments_of_calls_can_be_cleared_too() -> None:
    class CallCounts(WordCounts):
        def message(self, message: Message) -> int:
            return super().message(message) + sum(len(call.function.arguments) for call in message.tool_calls or ())

    messages = conversation(8)
    for inputs, arguments in (
        (True, "{}"),
        (frozenset({"f"}), "{}"),
        (frozenset({"g"}), '{"a": 1}'),
        (False, '{"a": 1}'),
    ):
        clearing = ToolClearing(trigger_tokens=500, inputs=inputs)
        counts = CallCounts()
        result = clear(messages, list(map(counts.message, messages)), clearing, fixed=0, count=counts.message)
        assert (result.messages[1].tool_calls or [])[0].function.arguments == arguments
        assert (result.messages[-2].tool_calls or [])[0].function.arguments == '{"a": 1}'
        assert result.tokens == list(map(counts.message, result.messages))


@example_count(100, long=20_000)
@hypothesis.given(seed=some.integers(0, 2**32), trigger=some.integers(20, 1500), keep=some.integers(0, 5))
def test_the_beginning_stays_the_same_until_more_is_cleared(seed: int, trigger: int, keep: int) -> None:
    grown = history(seed, usual=True)
    clearing = ToolClearing(trigger_tokens=trigger, keep=keep)
    before: Cleared | None = None
    for length in grown.requests:
        messages = grown.messages[:length]
        result = cleared(messages, clearing, fixed=3)
        assert result.tokens == list(map(COUNTS.message, result.messages))
        if before is not None:
            assert result.uses >= before.uses
            if result.uses == before.uses:
                assert result.messages[: len(before.messages)] == before.messages
        before = result


async def test_results_are_cleared_before_messages_are_dropped() -> None:
    spec = SimulatedModel.model_validate({"name": "sim", "engine": "simulated", "options": {"max_model_len": 1000}})
    registry = Registry({"sim": spec})
    shortening = Shortening(registry, ContextWindow(registry))
    owner = Owner(1, 1)
    messages = conversation(9)
    new = NewJob(
        owner,
        "sim",
        3,
        GenerateRequest(messages=messages),
        options=RequestOptions(tool_clearing=ToolClearing(trigger_tokens=500)),
    )
    result = await shortening.shorten(Principal.of(owner), new)
    assert shown(result.request.messages or []) == "xxxxxxrrr"
    decision = result.decisions.context
    assert decision is not None
    assert (decision.strategy, decision.cleared_tool_uses, decision.dropped_messages) == ("clear_tool_uses", 6, 0)
    assert decision.tokens_before == (decision.tokens_after or 0) + decision.cleared_tokens

    window = ContextOptions(strategy="sliding_window", trigger_tokens=300)
    both = replace(new, options=replace(new.options, context=window))
    decision = (await shortening.shorten(Principal.of(owner), both)).decisions.context
    assert decision is not None
    assert decision.strategy == "sliding_window"
    assert decision.cleared_tool_uses == 6
    assert decision.dropped_messages > 0
