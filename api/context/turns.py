"""Splits a conversation into the parts that are dropped or kept together.

A turn begins with the user's messages and goes on with the model's steps: an assistant's message and the results of its
tool calls. No part begins between a call and its result, wherever the result is, so that neither is ever left without
the other. Messages of the system and of developers belong to no part: they are always kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from shared.domain.request import Message

INSTRUCTIONS = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Part:
    """The messages at these positions.

    `turn`: the index of the part that begins its turn. `asks`: whether it is one of the user's messages that begin the
    turn, which the model's steps answer.
    """

    positions: tuple[int, ...]
    turn: int
    asks: bool


def split(messages: Sequence[Message]) -> list[Part]:
    """Split a conversation into parts, in order. Each message is in one of them, or is an instruction."""
    joined = _joined(messages)
    groups: list[list[int]] = []
    begins_turn: list[bool] = []
    before: str | None = None  # the role of the message before, without instructions
    for position, message in enumerate(messages):
        if message.role in INSTRUCTIONS:
            continue
        if not groups or (message.role != "tool" and not joined[position]):
            begins_turn.append(not groups or (message.role == "user" and before != "user"))
            groups.append([])
        groups[-1].append(position)
        before = message.role
    parts: list[Part] = []
    turn, asking = 0, True
    for number, group in enumerate(groups):
        if begins_turn[number]:
            turn, asking = number, True
        asking = asking and all(messages[position].role == "user" for position in group)
        parts.append(Part(tuple(group), turn, asking))
    return parts


def _joined(messages: Sequence[Message]) -> list[bool]:
    """For each message, whether a part that begins with it would separate a call from its result."""
    changes = [0] * (len(messages) + 1)
    for one, other in _calls(messages):
        changes[min(one, other) + 1] += 1
        changes[max(one, other) + 1] -= 1
    return [count > 0 for count in accumulate(changes[:-1])]


def _calls(messages: Sequence[Message]) -> list[tuple[int, int]]:
    """The positions of calls and their results.

    A result belongs to the last call of its id before it, because models use ids again, or to the first after it.
    """
    pairs = []
    latest: dict[str, int] = {}
    early: dict[str, list[int]] = {}  # results without a call before them
    for position, message in enumerate(messages):
        for call in message.tool_calls or ():
            pairs += [(position, result) for result in early.pop(call.id, ())]
            latest[call.id] = position
        if message.role == "tool" and (call_id := message.tool_call_id) is not None:
            if call_id in latest:
                pairs.append((latest[call_id], position))
            else:
                early.setdefault(call_id, []).append(position)
    return pairs
