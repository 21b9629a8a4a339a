"""Conversations are cut so that nothing is torn apart, and so that their beginning stays the same for many turns."""

from __future__ import annotations

from collections.abc import Sequence

import hypothesis
import hypothesis.strategies as some
import pytest

from api.context.cut import Budget, Cut, cut
from shared.domain.request import FunctionCall, Message, MessageToolCall
from tests.support.examples import example_count
from tests.unit.api.context.histories import history

HISTORIES = example_count(200, long=100_000)
SEEDS = some.integers(0, 2**32)


def sizes(messages: Sequence[Message]) -> list[int]:
    return [len(message.content or "") // 5 + 2 for message in messages]


def said(role: str, count: int = 1) -> list[Message]:
    return [Message.model_validate({"role": role, "content": "word " * 8}) for _ in range(count)]


def asks(count: int = 1) -> list[Message]:
    return said("user", count)


def answers(count: int = 1) -> list[Message]:
    return said("assistant", count)


def step(call_id: str) -> list[Message]:
    call = MessageToolCall(id=call_id, function=FunctionCall(name="f", arguments="{}"))
    return [
        Message(role="assistant", tool_calls=[call], content="word " * 8),
        Message(role="tool", tool_call_id=call_id, content="word " * 8),
    ]


def kept(messages: Sequence[Message], trigger: int, target: int, **sizes_beside: int) -> tuple[int, ...]:
    return cut(messages, [10] * len(messages), Budget(trigger, target, **sizes_beside)).kept


def links(messages: Sequence[Message], positions: Sequence[int]) -> set[tuple[int, int]]:
    """The calls and results among the messages at these positions, by the positions of both."""
    found = set()
    latest: dict[str, int] = {}
    early: dict[str, list[int]] = {}
    for position in positions:
        message = messages[position]
        for call in message.tool_calls or ():
            found |= {(position, result) for result in early.pop(call.id, ())}
            latest[call.id] = position
        if message.role == "tool" and message.tool_call_id is not None:
            if message.tool_call_id in latest:
                found.add((latest[message.tool_call_id], position))
            else:
                early.setdefault(message.tool_call_id, []).append(position)
    return found


@HISTORIES
@hypothesis.given(seed=SEEDS, usual=some.booleans(), trigger=some.integers(20, 2000), share=some.floats(0.1, 0.9))
def test_no_call_is_left_without_its_result_and_no_instruction_is_lost(
    seed: int, usual: bool, trigger: int, share: float
) -> None:
    messages = history(seed, usual=usual).messages
    budget = Budget(trigger, int(trigger * share), fixed=7, summary=5)
    result = cut(messages, sizes(messages), budget)

    assert list(result.kept) == sorted(set(result.kept))  # in order
    instructions = {n for n, message in enumerate(messages) if message.role in ("system", "developer")}
    assert instructions <= set(result.kept)
    if messages:
        assert len(messages) - 1 in result.kept  # the newest message
    left = set(result.kept)
    for call, answer in links(messages, range(len(messages))):
        assert (call in left) == (answer in left)
    assert links(messages, result.kept) == {link for link in links(messages, range(len(messages))) if link[0] in left}

    if usual and result.rounds:  # Anthropic, Bedrock and many templates reject others
        assert next(messages[n].role for n in result.kept if n not in instructions) == "user"

    dropped = [position for positions in result.rounds for position in positions]
    assert sorted(dropped) == sorted(set(range(len(messages))) - left)
    counted = sum(sizes([messages[n] for n in result.kept])) + budget.fixed + (budget.summary if dropped else 0)
    assert result.tokens == counted
    if counted > budget.trigger:  # nothing else could be dropped
        rest = [n for n in result.kept if n not in instructions]
        newest = rest[-1] if rest else 0
        assert all(messages[n].role == "user" or _belongs(messages, n, newest) for n in rest)


def _belongs(messages: Sequence[Message], position: int, newest: int) -> bool:
    """Whether a message cannot be dropped without tearing apart what the newest one belongs to."""
    if position == newest:
        return True
    pairs = links(messages, range(len(messages)))
    boundaries = [
        n
        for n in range(position + 1, newest + 1)
        if messages[n].role in ("user", "assistant") and not any(min(pair) < n <= max(pair) for pair in pairs)
    ]
    return not boundaries


@HISTORIES
@hypothesis.example(seed=306, trigger=303, share=0.5)  # instructions follow a question that nothing has answered
@hypothesis.given(seed=SEEDS, trigger=some.integers(20, 1500), share=some.floats(0.1, 0.9))
def test_the_beginning_stays_the_same_between_two_cuts(seed: int, trigger: int, share: float) -> None:
    grown = history(seed, usual=True)
    budget = Budget(trigger, int(trigger * share), fixed=3)
    before: Cut | None = None
    cuts = 0
    for length in grown.requests:
        messages = grown.messages[:length]
        result = cut(messages, sizes(messages), budget)
        if before is not None:
            assert result.rounds[: len(before.rounds)] == before.rounds
            if len(result.rounds) == len(before.rounds):
                assert result.kept[: len(before.kept)] == before.kept
            else:
                cuts += 1
        before = result
    hypothesis.event(f"cut {min(cuts, 3)} times")


def test_a_conversation_below_the_trigger_is_kept() -> None:
    messages = asks() + answers() + asks()
    assert kept(messages, 30, 10) == (0, 1, 2)


def test_whole_turns_are_dropped_until_the_rest_fits_the_target() -> None:
    messages = said("system") + 4 * (asks() + answers()) + asks()
    assert kept(messages, 90, 60) == (0, 5, 6, 7, 8, 9)
    assert kept(messages, 90, 59) == (0, 7, 8, 9)
    assert kept(messages, 90, 59, fixed=10) == (0, 7, 8, 9)


def test_instructions_amid_the_conversation_are_kept_in_order() -> None:
    messages = asks() + said("developer") + answers() + asks() + answers() + asks()
    assert kept(messages, 50, 30) == (1, 5)
    assert kept(messages, 50, 40) == (1, 3, 4, 5)


def test_instructions_at_the_end_count_too() -> None:
    messages = asks() + answers() + asks() + said("developer", 2)
    assert kept(messages, 40, 30) == (2, 3, 4)
    assert kept(messages, 50, 30) == (0, 1, 2, 3, 4)


def test_the_steps_of_a_long_turn_are_dropped_but_not_its_question() -> None:
    messages = said("system") + asks() + step("a") + step("b") + step("c") + step("d")
    assert kept(messages, 80, 60) == (0, 1, 6, 7, 8, 9)
    earlier = asks() + answers() + messages[1:]
    assert kept(earlier, 80, 60) == (2, 7, 8, 9, 10)


def test_a_turn_that_fits_is_not_cut_to_reach_the_target() -> None:
    messages = asks() + answers() + asks() + step("a") + step("b")
    assert kept(messages, 60, 20) == (2, 3, 4, 5, 6)


def test_messages_of_the_user_in_succession_are_dropped_one_by_one_if_nothing_answers_them() -> None:
    assert kept(asks(10), 50, 30) == (6, 7, 8, 9)
    assert kept([*asks(10), *answers()], 50, 30)[-1] == 10


@pytest.mark.parametrize("between", [asks(), answers(), asks() + answers()])
def test_a_late_result_keeps_everything_back_to_its_call(between: list[Message]) -> None:
    first, late = step("a")
    messages = [*asks(), *answers(), *asks(), first, *between, late, *asks()]
    left = kept(messages, 20 + 10 * len(between) + 10, 20 + 10 * len(between))
    assert (3 in left) == (4 + len(between) in left)
    assert kept(messages, 20, 10) == (len(messages) - 1,)


def test_an_id_that_is_used_again_belongs_to_the_newest_call() -> None:
    messages = 3 * (asks() + step("call_0")) + asks()
    assert kept(messages, 50, 40) == (6, 7, 8, 9)


def test_sizes_of_what_cannot_be_dropped() -> None:
    messages = said("system") + asks() + answers() + asks() + step("a")
    result = cut(messages, [10] * 6, Budget(20, 10, fixed=5))
    assert (result.tokens, result.kept) == (5 + 40, (0, 3, 4, 5))


@pytest.mark.parametrize("messages", [asks(1000), answers(1000), (asks() + answers()) * 500])
def test_each_new_message_may_move_the_cut(messages: list[Message]) -> None:
    result = cut(messages, [10] * len(messages), Budget(12, 5))
    assert len(result.rounds) >= 499
    assert result.kept[-1] == 999
    assert len(result.kept) <= 2
