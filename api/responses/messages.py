"""A response's items as the conversation that an engine is given.

A turn of the assistant's may span several items (reasoning, a message, calls); they become one message, as chat
templates have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from api.responses.input_items import FunctionCallItem, FunctionCallOutputItem, InputItem, MessageItem, ReasoningItem
from shared.domain.errors import InvalidRequest
from shared.domain.job import Choice
from shared.domain.request import FunctionCall, Message, MessageToolCall
from shared.domain.response import StoredResponse


def conversation(
    instructions: str | None, previous: StoredResponse | None, items: Sequence[InputItem]
) -> list[Message]:
    """The whole conversation: instructions, what came before, and the new items.

    Raises:
        InvalidRequest: an output belongs to no call.
    """
    messages = [Message(role="system", content=instructions)] if instructions is not None else []
    if previous is not None:
        messages += _said_before(previous)
    messages += to_messages(items)
    called: set[str] = set()
    for message in messages:
        called.update(call.id for call in message.tool_calls or ())
        if message.role == "tool" and message.tool_call_id not in called:
            raise InvalidRequest(
                f"input: there is no function_call for the function_call_output with call_id"
                f" {message.tool_call_id!r}; give it, or the previous_response_id of the response that has it",
                param="input",
            )
    return messages


def _said_before(previous: StoredResponse) -> list[Message]:
    """A response's conversation, its answer included; its instructions are its own."""
    messages = list(previous.job.request.messages or ())
    if "instructions" in previous.facts.request_params:
        del messages[0]
    return messages + [_answer(choice) for choice in previous.job.output[:1]]


def _answer(choice: Choice) -> Message:
    calls = [
        MessageToolCall(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments))
        for call in choice.tool_calls
    ]
    return Message(
        role="assistant",
        content=choice.text or (None if calls else ""),
        tool_calls=calls or None,
        reasoning=choice.reasoning,
    )


def to_messages(items: Sequence[InputItem]) -> list[Message]:
    """Items as messages, in their order."""
    messages: list[Message] = []
    turn = _Turn()
    for item in items:
        if not turn.takes(item):
            messages += turn.messages()
            turn = _Turn()
        match item:
            case ReasoningItem():
                turn.reasoning = item.text
            case FunctionCallItem():
                function = FunctionCall(name=item.name, arguments=item.arguments)
                turn.calls.append(MessageToolCall(id=item.call_id, function=function))
            case FunctionCallOutputItem():
                messages.append(Message(role="tool", tool_call_id=item.call_id, content=item.output))
            case MessageItem(role="assistant"):
                turn.text = item.text
            case MessageItem():
                messages.append(Message(role=item.role, content=item.text))
    return messages + turn.messages()


@dataclass(slots=True)
class _Turn:
    """A turn of the assistant's as it is put together."""

    reasoning: str | None = None
    text: str | None = None
    calls: list[MessageToolCall] = field(default_factory=list)

    def takes(self, item: InputItem) -> bool:
        """Whether an item belongs to this turn: thoughts come first, then a text, then calls."""
        match item:
            case ReasoningItem():
                return self.reasoning is None and self.text is None and not self.calls
            case MessageItem(role="assistant"):
                return self.text is None and not self.calls
            case FunctionCallItem():
                return True
            case _:
                return False

    def messages(self) -> list[Message]:
        if self.reasoning is None and self.text is None and not self.calls:
            return []
        content = self.text if self.text is not None or self.calls else ""
        return [Message(role="assistant", content=content, tool_calls=self.calls or None, reasoning=self.reasoning)]
