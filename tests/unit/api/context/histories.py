"""Generated conversations: turns with tool calls, in the order in which clients send them and in others."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from shared.domain.request import FunctionCall, Message, MessageToolCall

TEXTS = ("", "x", "a few words", "a text " * 12, "a long text " * 60)


@dataclass(slots=True)
class History:
    """A conversation, and after how many of its messages a client may have sent a request."""

    messages: list[Message] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)


def history(seed: int, *, usual: bool) -> History:
    """A conversation. `usual`: results follow their calls; otherwise they may be anywhere, or missing."""
    return _Writer(random.Random(seed), usual).write()


class _Writer:
    def __init__(self, chance: random.Random, usual: bool) -> None:
        self._chance = chance
        self._usual = usual
        self._ids = 0
        self._open: list[str] = []
        self._history = History()
        self._repeats_ids = chance.random() < 0.2

    def write(self) -> History:
        if self._chance.random() < 0.6:
            self._add("system")
        if self._chance.random() < 0.1:
            self._add("assistant")
        for _ in range(self._chance.randint(1, 14)):
            self._turn()
        if self._chance.random() < 0.1:
            self._add("assistant")  # the beginning of the answer, to be continued
        return self._history

    def _turn(self) -> None:
        for _ in range(self._chance.choice((1, 1, 1, 1, 2, 5))):
            self._instruction()
            self._add("user")
        self._history.requests.append(len(self._history.messages))
        for _ in range(self._chance.choice((0, 0, 1, 2, 12))):
            self._step()
        if self._chance.random() < 0.9:
            self._add("assistant")

    def _step(self) -> None:
        ids = [self._id() for _ in range(self._chance.choice((1, 1, 2, 4)))]
        calls = [MessageToolCall(id=call, function=FunctionCall(name="f", arguments="{}")) for call in ids]
        results = list(ids)
        if not self._usual:
            self._chance.shuffle(results)
            if self._chance.random() < 0.3:
                self._open.append(results.pop())
            if self._open and self._chance.random() < 0.3:
                results.append(self._open.pop())
            if results and self._chance.random() < 0.1:
                self._result(results.pop())  # before its call
        self._add("assistant", tool_calls=calls)
        for call in results:
            self._instruction(0.02 if self._usual else 0.1)
            if not self._usual and self._chance.random() < 0.1:
                self._add("user")
            self._result(call)
        if not self._open:
            self._history.requests.append(len(self._history.messages))

    def _id(self) -> str:
        self._ids += 1
        return f"call_{self._ids % 3}" if self._repeats_ids and self._usual else f"call_{self._ids}"

    def _result(self, call: str) -> None:
        self._add("tool", tool_call_id=call)

    def _instruction(self, probability: float = 0.05) -> None:
        if self._chance.random() < probability:
            self._add(self._chance.choice(("system", "developer")))

    def _add(self, role: str, **fields: object) -> None:
        text = self._chance.choice(TEXTS)
        reasoning = "thinking" if role == "assistant" and self._chance.random() < 0.2 else None
        message = Message.model_construct(role=role, content=text, reasoning=reasoning, **fields)  # type: ignore[arg-type]
        self._history.messages.append(message)
