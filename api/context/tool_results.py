"""Clears old results of tools, as Anthropic's `clear_tool_uses_20250919` does: calls and results stay, without content.

As for a cut (`api.context.cut`), what is cleared depends only on what came before, so that the beginning of a growing
conversation stays the same until it is above the trigger again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared.domain.answer_options import ToolClearing
from shared.domain.request import Message, MessageToolCall

PLACEHOLDER = "[This result has been removed to save context.]"
NO_ARGUMENTS = "{}"


@dataclass(frozen=True, slots=True)
class Cleared:
    """A conversation with the tokens of each message, the number of cleared tool uses, and the tokens saved."""

    messages: list[Message]
    tokens: list[int]
    uses: int
    saved: int


def clear(
    messages: Sequence[Message],
    tokens: Sequence[int],
    clearing: ToolClearing,
    *,
    fixed: int,
    count: Callable[[Message], int],
) -> Cleared:
    """Clear old results, given the tokens of each message; `fixed` tokens are in the prompt beside them."""
    return _Replay(messages, tokens, clearing, fixed, count).run()


@dataclass(frozen=True, slots=True)
class _Use:
    """A call and its result, and the tokens that clearing them saves."""

    result: int
    call: int
    number: int
    saves_result: int
    saves_arguments: int


class _Replay:
    """Goes through a conversation, and clears results whenever it is above the trigger."""

    def __init__(
        self,
        messages: Sequence[Message],
        tokens: Sequence[int],
        clearing: ToolClearing,
        fixed: int,
        count: Callable[[Message], int],
    ) -> None:
        self._messages = list(messages)
        self._tokens = list(tokens)
        self._clearing = clearing
        self._count = count
        self._size = fixed
        self._placeholder = count(Message(role="tool", content=PLACEHOLDER))
        # The uses that are not cleared, oldest first; of those before the newest, which are kept, the tokens to save.
        self._uses: list[_Use] = []
        self._to_save = 0
        self._cleared = self._saved = 0

    def run(self) -> Cleared:
        calls: dict[str, tuple[int, int]] = {}
        for position, message in enumerate(self._messages):
            if message.role == "assistant":  # the answer to a request that ended before it
                self._clear_if_due()
            calls |= {call.id: (position, number) for number, call in enumerate(message.tool_calls or ())}
            if message.role == "tool" and message.tool_call_id in calls:
                self._add(position, *calls[message.tool_call_id])
            self._size += self._tokens[position]
        self._clear_if_due()
        return Cleared(self._messages, self._tokens, self._cleared, self._saved)

    def _add(self, result: int, call: int, number: int) -> None:
        function = (self._messages[call].tool_calls or [])[number].function
        if function.name in self._clearing.exclude:
            saves_result = saves_arguments = 0
        else:
            saves_result = max(0, self._tokens[result] - self._placeholder)
            saves_arguments = self._arguments(call, number) if self._clearing.clears_inputs(function.name) else 0
        self._uses.append(_Use(result, call, number, saves_result, saves_arguments))
        if len(self._uses) > self._clearing.keep:
            old = self._uses[-self._clearing.keep - 1]
            self._to_save += old.saves_result + old.saves_arguments

    def _arguments(self, call: int, number: int) -> int:
        given = (self._messages[call].tool_calls or [])[number]
        sizes = [self._count(Message(role="assistant", tool_calls=[item])) for item in (given, _without_input(given))]
        return max(0, sizes[0] - sizes[1])

    def _clear_if_due(self) -> None:
        clearing = self._clearing
        due = (clearing.trigger_tokens is not None and self._size > clearing.trigger_tokens) or (
            clearing.trigger_uses is not None and len(self._uses) > clearing.trigger_uses
        )
        if not due or self._to_save < max(1, clearing.at_least):
            return
        end = len(self._uses) - clearing.keep
        for use in self._uses[:end]:
            self._cleared += use.saves_result + use.saves_arguments > 0
            if use.saves_result:
                self._messages[use.result] = self._messages[use.result].model_copy(update={"content": PLACEHOLDER})
                self._tokens[use.result] -= use.saves_result
            if use.saves_arguments:
                calls = list(self._messages[use.call].tool_calls or ())
                calls[use.number] = _without_input(calls[use.number])
                self._messages[use.call] = self._messages[use.call].model_copy(update={"tool_calls": calls})
                self._tokens[use.call] -= use.saves_arguments
        self._size -= self._to_save
        self._saved += self._to_save
        self._to_save = 0
        del self._uses[:end]


def _without_input(call: MessageToolCall) -> MessageToolCall:
    return call.model_copy(update={"function": call.function.model_copy(update={"arguments": NO_ARGUMENTS})})
