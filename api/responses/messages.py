"""Converts a response's items to the conversation for the engine.

An assistant turn may span several items (reasoning, a message, calls). They become one message, as chat templates
expect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from api.responses.input_items import FunctionCallItem, FunctionCallOutputItem, InputItem, MessageItem, ReasoningItem
from shared.domain.errors import InvalidRequest
from shared.domain.job import Choice, Job
from shared.domain.opaque import MAX_OPAQUE_PARTS, TOOL_CALL, OpaquePart, decode
from shared.domain.request import FunctionCall, Message, MessageToolCall


@dataclass(frozen=True, slots=True)
class PreviousTurns:
    """The response that a conversation continues: its job, which has all earlier turns, maybe after instructions."""

    job: Job
    has_instructions: bool

    def messages(self) -> list[Message]:
        """The conversation, including its output but not its instructions."""
        messages = list(self.job.request.messages or ())
        if self.has_instructions:
            del messages[0]
        return messages + [_output_message(choice) for choice in self.job.output[:1]]


def conversation(instructions: str | None, previous: PreviousTurns | None, items: Sequence[InputItem]) -> list[Message]:
    """Build the complete conversation: instructions, the previous response's conversation, and the new items.

    Raises:
        InvalidRequest: a function_call_output has no function_call.
    """
    messages = [Message(role="system", content=instructions)] if instructions is not None else []
    if previous is not None:
        messages += previous.messages()
    messages += to_messages(items)
    call_ids: set[str] = set()
    for message in messages:
        call_ids.update(call.id for call in message.tool_calls or ())
        if message.role == "tool" and message.tool_call_id not in call_ids:
            raise InvalidRequest(
                f"input: there is no function_call for the function_call_output with call_id"
                f" {message.tool_call_id!r}; send it, or the previous_response_id of the response that contains it",
                param="input",
            )
    return messages


def _output_message(choice: Choice) -> Message:
    calls = [
        MessageToolCall(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments))
        for call in choice.tool_calls
    ]
    return Message(
        role="assistant",
        content=choice.text or (None if calls else ""),
        tool_calls=calls or None,
        reasoning=choice.reasoning,
        opaque=list(choice.opaque[:MAX_OPAQUE_PARTS]) or None,
    )


def to_messages(items: Sequence[InputItem]) -> list[Message]:
    """Convert items to messages, in order."""
    messages: list[Message] = []
    turn = _Turn()
    for position, item in enumerate(items):
        path = f"input[{position}]"
        if not turn.accepts(item):
            messages += turn.messages()
            turn = _Turn()
        match item:
            case ReasoningItem():
                turn.add_reasoning(item)
            case FunctionCallItem():
                function = FunctionCall(name=item.name, arguments=item.arguments)
                turn.calls.append(MessageToolCall(id=item.call_id, function=function))
            case FunctionCallOutputItem():
                messages.append(Message(role="tool", tool_call_id=item.call_id, content=item.parts(path)))
            case MessageItem(role="assistant"):
                turn.text = item.text
            case MessageItem():
                messages.append(Message(role=item.role, content=item.parts(path)))
    return messages + turn.messages()


@dataclass(slots=True)
class _Turn:
    """An assistant turn under construction."""

    reasoning: str | None = None
    text: str | None = None
    calls: list[MessageToolCall] = field(default_factory=list)
    opaque: list[OpaquePart] = field(default_factory=list)

    def accepts(self, item: InputItem) -> bool:
        """Whether an item belongs to this turn. The order is: reasoning, message, calls.

        The opaque part of a call follows it, and a provider may reason in several items.
        """
        match item:
            case ReasoningItem():
                part = decode(item.encrypted_content)
                if part is not None and part.kind == TOOL_CALL:
                    return len(self.opaque) < MAX_OPAQUE_PARTS
                several = part is not None and 0 < len(self.opaque) < MAX_OPAQUE_PARTS
                return (self.reasoning is None or several) and self.text is None and not self.calls
            case MessageItem(role="assistant"):
                return self.text is None and not self.calls
            case FunctionCallItem():
                return True
            case _:
                return False

    def add_reasoning(self, item: ReasoningItem) -> None:
        """Add reasoning. The place of its opaque part follows from the order of the items."""
        part = decode(item.encrypted_content)
        if part is None or part.kind != TOOL_CALL:
            self.reasoning = (self.reasoning or "") + item.text
        if part is not None:
            place = part.at(reasoning=len(self.reasoning or ""), text=len(self.text or ""), calls=len(self.calls))
            self.opaque.append(place)

    def messages(self) -> list[Message]:
        if self.reasoning is None and self.text is None and not self.calls and not self.opaque:
            return []
        return [
            Message(
                role="assistant",
                content=self.text if self.text is not None or self.calls else "",
                tool_calls=self.calls or None,
                reasoning=(self.reasoning or None) if self.opaque else self.reasoning,
                opaque=self.opaque or None,
            )
        ]
