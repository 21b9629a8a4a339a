"""Chooses the messages to drop from a conversation, so that the rest has the same beginning for many turns.

A conversation above the trigger is cut to the target. Where it is cut depends only on what came before: the cuts are
found by going through the conversation from its start, as if each of its parts had just arrived. So a request that
repeats the conversation with further messages is cut at the same place until it is above the trigger again, and the
prefix caches of engines and upstreams find its beginning.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from api.context.turns import INSTRUCTIONS, split
from shared.domain.request import Message


@dataclass(frozen=True, slots=True)
class Budget:
    """Sizes in tokens. `fixed` is in the prompt beside the messages; `summary` is reserved if something is dropped."""

    trigger: int
    target: int
    fixed: int = 0
    summary: int = 0


@dataclass(frozen=True, slots=True)
class Cut:
    """The remaining part of a conversation: the positions of its messages, and the tokens of the prompt.

    `rounds`: the positions of the messages that each cut since the start of the conversation dropped.
    """

    kept: tuple[int, ...]
    rounds: tuple[tuple[int, ...], ...]
    tokens: int


def cut(messages: Sequence[Message], tokens: Sequence[int], budget: Budget) -> Cut:
    """Cut a conversation, given the tokens of each message."""
    return _Replay(messages, tokens, budget).run()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a conversation is cut. Parts are kept from `start` on.

    If `start` is amid the steps of a turn, the parts from `asked` to before `answered` are kept too: the questions that
    the steps answer.
    """

    start: int
    asked: int
    answered: int

    def before(self, end: int) -> set[int]:
        """The parts before `end` that are kept."""
        return {*range(self.asked, self.answered), *range(self.start, end)}


class _Replay:
    """Goes through a conversation, and moves the place of the cut. `_last` is the part that has just arrived."""

    def __init__(self, messages: Sequence[Message], tokens: Sequence[int], budget: Budget) -> None:
        self._budget = budget
        self._parts = split(messages)
        self._turns = sorted({part.turn for part in self._parts})
        # By the part that begins a turn, the first of its parts that is no question.
        self._answered = {turn: turn for turn in self._turns}
        self._answered |= {part.turn: number + 1 for number, part in enumerate(self._parts) if part.asks}
        sizes = [sum(tokens[position] for position in part.positions) for part in self._parts]
        self._before = [0, *accumulate(sizes)]
        # The prompt's tokens beside the parts: when each of them has arrived, and at the end.
        instructions = (
            count if message.role in INSTRUCTIONS else 0 for message, count in zip(messages, tokens, strict=True)
        )
        fixed = list(accumulate(instructions, initial=budget.fixed))
        self._fixed = [fixed[part.positions[-1] + 1] for part in self._parts]
        self._all_fixed = fixed[-1]
        self._messages = len(messages)
        self._place = _Place(0, 0, 0)
        self._last = 0
        self._rounds: list[tuple[int, ...]] = []

    def run(self) -> Cut:
        for last in range(len(self._parts)):
            self._last = last
            self._cut_if_due()
        if self._parts:
            self._fixed[-1] = self._all_fixed  # with the instructions that follow the last part
            self._cut_if_due()
        dropped = {position for positions in self._rounds for position in positions}
        return Cut(
            kept=tuple(position for position in range(self._messages) if position not in dropped),
            rounds=tuple(self._rounds),
            tokens=self._size(self._place) if self._parts else self._all_fixed,
        )

    def _cut_if_due(self) -> None:
        if self._size(self._place) <= self._budget.trigger or (place := self._next_place()) is None:
            return
        gone = self._place.before(place.start) - place.before(place.start)
        self._rounds.append(tuple(sorted(position for number in gone for position in self._parts[number].positions)))
        self._place = place

    def _size(self, place: _Place) -> int:
        """The tokens of the prompt that ends with the last part, if it is cut there."""
        before = self._before
        summary = self._budget.summary if place.start else 0
        questions = before[place.answered] - before[place.asked]
        return self._fixed[self._last] + summary + questions + before[self._last + 1] - before[place.start]

    def _next_place(self) -> _Place | None:
        """The place to which the cut moves; None if nothing more can be dropped.

        As many whole turns are kept as fit the target, and at least the newest turn. If that is above the trigger, its
        own steps are dropped, but not its questions; and if it has no steps yet, the first of its messages.
        """
        newest, last = self._parts[self._last].turn, self._last
        first, end = bisect_left(self._turns, self._place.start + 1), bisect_left(self._turns, newest) + 1
        place = self._best(lambda n: _whole(self._turns[n]), first, end)
        if place is not None and self._size(place) <= self._budget.trigger:
            return place
        inside = self._place.start >= newest  # the newest turn has been cut before
        answered = self._answered[newest]
        start = max(newest, self._place.start)
        if answered > last:
            better = self._best(_whole, start + 1, last + 1)
        else:
            asked = self._place.asked if inside else newest
            better = self._best(lambda n: _Place(n, asked, answered), max(answered, start) + 1, last + 1)
        return better or place

    def _best(self, place: Callable[[int], _Place], start: int, end: int) -> _Place | None:
        """The first of these places at which the prompt fits the target, or the last of them; None without any."""
        if start >= end:
            return None
        number = bisect_left(range(start, end - 1), True, key=lambda n: self._size(place(n)) <= self._budget.target)
        return place(start + number)


def _whole(start: int) -> _Place:
    return _Place(start, start, start)
