"""Requests of many scripts, languages, lengths and shapes, whose routing is measured."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from api.routing.examples import Example
from shared.domain.request import ChatOptions, Function, GenerateRequest, Message, Tool

# Beginnings of tasks, which are labelled, and texts that follow them.
SIMPLE = ("What is the population of", "Who wrote about", "Translate into German:", "Which colour has")
COMPLEX = ("Prove a statement about", "Write a program that simulates", "Compare step by step", "Analyse the causes of")
TEXTS = (
    "the river and its bridges ",
    "мост через реку ",
    "河上的桥和船",
    "川にかかる橋",
    "جسر فوق النهر ",
    "नदी पर पुल ",
    "def cross(river): return [bridge for bridge in river];\n",
    "😀🤯🦙 ",
)
CHARACTERS = (20, 200, 2000, 20_000, 200_000)
MESSAGES = (1, 11, 101)
TOOLS = "code and 20 tools"
TURNS = "20 turns"
NEXT_TURN = "the next of 20 turns"
ALL_KINDS = "all kinds"
KINDS = (*(f"{characters:,} characters" for characters in CHARACTERS), TOOLS, TURNS, NEXT_TURN)


def requests(kind: str, count: int) -> Iterator[GenerateRequest]:
    """Different requests of a kind, in random order: those of a length in each script and number of messages.

    Those of `NEXT_TURN` are one conversation; each has a turn more, and the oldest turn of 20 less.
    """
    if kind in (TOOLS, TURNS, NEXT_TURN):
        of_number = {TOOLS: _with_tools, TURNS: _conversation, NEXT_TURN: _next_turn}[kind]
        yield from map(of_number, range(count))
        return
    characters = CHARACTERS[KINDS.index(kind)]
    order = random.Random(kind)
    shapes = [(text, messages) for text in TEXTS for messages in MESSAGES]
    for number in range(count):
        if number % len(shapes) == 0:
            order.shuffle(shapes)
        text, messages = shapes[number % len(shapes)]
        task = f"{order.choice((*SIMPLE, *COMPLEX))} {number} {(text * (characters // len(text) + 1))[:characters]}"
        earlier = [Message(role=("user", "assistant")[at % 2], content=text) for at in range(messages - 1)]
        yield GenerateRequest(messages=[*earlier, _user(task)])


def examples() -> list[Example]:
    """Labelled requests to train a classifier on, whose quality does not change its cost."""
    return [
        Example(GenerateRequest(prompt=f"{beginning} {text} {number}"), label)
        for label, beginnings in ((0.0, SIMPLE), (1.0, COMPLEX))
        for beginning in beginnings
        for number, text in enumerate(TEXTS)
    ]


def _with_tools(number: int) -> GenerateRequest:
    tools = [Tool(function=Function(name=f"tool_{n}", parameters={"type": "object"})) for n in range(20)]
    text = f"{number}: implement a sieve\n```python\ndef sieve(n): ...\n```\nand prove that it ends."
    return GenerateRequest(messages=[_user(text)], chat=ChatOptions(tools=tools))


def _conversation(number: int) -> GenerateRequest:
    return _turns(f"{number}.{turn}" for turn in range(20))


def _next_turn(number: int) -> GenerateRequest:
    return _turns(str(number + turn) for turn in range(20))


def _turns(names: Iterable[str]) -> GenerateRequest:
    messages = []
    for name in names:
        messages.append(_user(f"{name}: " + "tell me more about rivers. " * 10))
        messages.append(Message(role="assistant", content=f"{name}: " + "rivers are long. " * 20))
    return GenerateRequest(messages=[*messages, _user("And what follows from it?")])


def _user(text: str) -> Message:
    return Message(role="user", content=text)
