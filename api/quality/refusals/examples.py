"""The labelled answers that the classifier of refusals is trained with and measured on: files by language.

Those in `train` teach it, with texts that are made of `patterns.txt`. Those in `test` were written in other words, and
are never trained with; but the mistakes in them were looked at once before the last patterns were written.

A line is `+` for a refusal or `-` for another answer, a space, and the beginning of the answer.
"""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).with_name("examples")
TRAIN, TEST, PATTERNS = FOLDER / "train", FOLDER / "test", FOLDER / "patterns.txt"
LANGUAGES = ("en", "de", "fr", "es", "it")
# Texts of one pattern, which are similar to each other.
OF_A_PATTERN = 40


@dataclass(frozen=True, slots=True)
class LabelledAnswer:
    """The beginning of an answer, its language, and whether it is a refusal."""

    language: str
    text: str
    refused: bool


def read_answers(folder: Path) -> list[LabelledAnswer]:
    """Read the answers of all languages.

    Raises:
        ValueError: a line is not one of an answer, or is a repetition.
    """
    answers: dict[str, LabelledAnswer] = {}
    for language in LANGUAGES:
        path = folder / f"{language}.txt"
        for number, line in enumerate(path.read_text().splitlines(), 1):
            mark, _, text = line.partition(" ")
            if mark not in ("+", "-") or not text.strip():
                raise ValueError(f"{path}:{number}: must be `+` or `-`, a space, and an answer")
            if text in answers:
                raise ValueError(f"{path}:{number}: {text!r} is there already")
            answers[text] = LabelledAnswer(language, text, mark == "+")
    return list(answers.values())


def made_answers(path: Path = PATTERNS) -> list[LabelledAnswer]:
    """Make answers of patterns, each of which is a line: the language, `+` or `-`, and a text with alternatives in
    parentheses, separated by `|`. Of each, `OF_A_PATTERN` are taken at random, the same ones each time."""
    answers = []
    chance = random.Random(0)
    for line in path.read_text().splitlines():
        language, mark, pattern = line.split(" ", 2)
        parts = [part.split("|") for part in re.split(r"[()]", pattern)]
        texts = ["".join(choice) for choice in itertools.product(*parts)]
        taken = chance.sample(texts, min(OF_A_PATTERN, len(texts)))
        answers += [LabelledAnswer(language, text, mark == "+") for text in taken]
    return answers
