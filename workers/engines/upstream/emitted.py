"""Finds the new part of an answer that the upstream sends again from the start."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from shared.domain.events import CallDelta, Delta


class Differs(Exception):
    """The answer is not the one whose beginning was emitted."""


class Emitted:
    """The output of a job so far."""

    def __init__(self, deltas: Iterable[Delta] = ()) -> None:
        # The pieces of each part of an answer: see `_pieces`.
        self._parts: dict[tuple[int, str, int], list[str]] = {}
        for delta in deltas:
            self.add(delta)

    @property
    def empty(self) -> bool:
        return not self._parts

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return "".join(self._parts.get((0, "text", 0), ()))

    def add(self, delta: Delta) -> None:
        for part, piece in _pieces(delta):
            self._parts.setdefault(part, []).append(piece)

    def unsent(self) -> Unsent:
        """Begin to compare an answer with this output."""
        return Unsent({part: "".join(pieces) for part, pieces in self._parts.items()})


class Unsent:
    """Removes the emitted beginning from the deltas of an answer that starts again."""

    def __init__(self, emitted: dict[tuple[int, str, int], str]) -> None:
        self._emitted = emitted

    def rest(self, delta: Delta) -> Delta | None:
        """What was not emitted of a delta; None if nothing is left.

        Raises:
            Differs: the answer is another one.
        """
        if not self._emitted:
            return delta
        calls = tuple(rest for call in delta.tool_calls if (rest := self._left_of_call(delta.index, call)))
        left = replace(
            delta,
            text=self._left((delta.index, "text", 0), delta.text),
            reasoning=self._left((delta.index, "reasoning", 0), delta.reasoning),
            tool_calls=calls,
        )
        if left.text != delta.text or left.reasoning != delta.reasoning or calls != delta.tool_calls:
            left.logprobs = ()
        return left if left.visible else None

    @property
    def complete(self) -> bool:
        """Whether all that was emitted has come again."""
        return not any(self._emitted.values())

    def _left_of_call(self, index: int, call: CallDelta) -> CallDelta | None:
        part = (index, "call", call.index)
        if part not in self._emitted:
            return call
        arguments = self._left(part, call.arguments)
        return replace(call, id=None, name=None, arguments=arguments) if arguments else None

    def _left(self, part: tuple[int, str, int], piece: str) -> str:
        emitted = self._emitted.get(part, "")
        if not emitted or not piece:
            return piece
        if emitted.startswith(piece):
            self._emitted[part] = emitted[len(piece) :]
            return ""
        if not piece.startswith(emitted):
            raise Differs
        self._emitted[part] = ""
        return piece[len(emitted) :]


def _pieces(delta: Delta) -> Iterable[tuple[tuple[int, str, int], str]]:
    if delta.text:
        yield (delta.index, "text", 0), delta.text
    if delta.reasoning:
        yield (delta.index, "reasoning", 0), delta.reasoning
    for call in delta.tool_calls:
        yield (delta.index, "call", call.index), call.arguments
