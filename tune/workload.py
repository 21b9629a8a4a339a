"""The texts that a model is measured with, and how much of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

TEXT = Path(__file__).parent / "texts" / "alice.txt"
# Characters of a text of about 450 tokens: fits the context of all models.
WINDOW = 1800

QUESTIONS = (
    "Why is the sky blue?",
    "Explain how a bicycle stays upright.",
    "Write a short story about a lighthouse keeper.",
    "What are the three states of water?",
    "Give me a recipe for vegetable soup.",
    "How does a vaccine work?",
    "Summarize the causes of the First World War.",
    "Write a Python function that reverses a list.",
    "What is the difference between weather and climate?",
    "Describe a sunrise over the sea.",
    "How do I remove a stain of red wine?",
    "Name the planets of the solar system, with a fact about each.",
    "What does a compiler do?",
    "Write a letter that thanks a teacher.",
    "Why do leaves change their colour in autumn?",
    "How is paper made?",
)

# An answer that repeats its prompt: what n-gram speculation is made for.
REPETITIVE = (
    "Copy this list exactly, three times:\n"
    "apple: red, round, sweet\nbanana: yellow, long, sweet\nlemon: yellow, oval, sour\nplum: purple, oval, sweet\n"
    "cherry: red, round, sour\ngrape: green, round, sweet\n"
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Args:
        tokens: answer tokens of each stream, by the number of streams at the same time.
        repeats: runs of each number of streams, of which the median counts; requests for the first token alone.
        windows: pieces of the text for the perplexity.
        answers: greedy answers that are compared, and their length in tokens.
        speculation_tokens: tokens of the repetitive and of the plain answer.
    """

    tokens: dict[int, int]
    repeats: int
    windows: int
    answers: int
    answer_tokens: int
    speculation_tokens: int


FULL = Plan(
    {1: 128, 4: 128, 16: 128, 64: 96}, repeats=3, windows=4, answers=16, answer_tokens=64, speculation_tokens=192
)
QUICK = Plan({1: 48, 4: 48, 16: 32, 64: 16}, repeats=1, windows=2, answers=8, answer_tokens=32, speculation_tokens=48)


def paragraphs() -> list[str]:
    return TEXT.read_text().splitlines()


def windows(count: int) -> list[str]:
    """The text in pieces of at most `WINDOW` characters, each of whole paragraphs."""
    pieces = [""]
    for paragraph in paragraphs():
        if pieces[-1] and len(pieces[-1]) + len(paragraph) > WINDOW:
            pieces.append("")
        pieces[-1] += ("\n" if pieces[-1] else "") + paragraph
    return pieces[:count]


def long_prefix(tokens: int) -> str:
    """A text of about this many tokens, at four characters a token."""
    text = "\n".join(paragraphs())
    return text[: tokens * 4]


def question(number: int) -> str:
    """A question; different for each number, so that streams do not share a prompt."""
    text = QUESTIONS[number % len(QUESTIONS)]
    return text if number < len(QUESTIONS) else f"{text} Begin with the number {number}."
