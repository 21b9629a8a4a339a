"""Whether a model has refused to answer: what its provider says, and otherwise what a classifier makes of the text.

A refusal declines the whole request, whatever the reason is: a policy, or something that the model cannot do. An answer
that helps with a part of the request is none. The classifier is a logistic regression over the words at the beginning
of the answer, where refusals show themselves. Its weights, and how well it does on answers that it was not trained
with, are in `refusal_weights.json`, which `python -m api.quality.refusals` writes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from shared.domain.job import SUCCEEDED, Choice, JobStatus

WEIGHTS = Path(__file__).with_name("refusal_weights.json")
# The part of an answer that is read: characters, and words of these.
MAX_CHARACTERS = 400
MAX_WORDS = 40
MAX_NGRAM = 3
# More choices than these are not read, so that a verdict takes no longer.
MAX_CHOICES = 4
# Punctuation counts too: an answer that begins with a quotation mark quotes a refusal, and is none.
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|[\"!?:{\u00ab\u00bb\u201c\u201d\u201e]")
# The place before the first word, so that an n-gram can say that the answer begins with it.
_START = "^"


class RefusalSource(StrEnum):
    """Who says whether an answer is a refusal."""

    PROVIDER = "provider"
    CLASSIFIER = "classifier"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the model has refused to answer, and who says so."""

    refused: bool
    source: RefusalSource


@dataclass(frozen=True, slots=True)
class Classifier:
    """The weights of n-grams of words, in small letters and separated by spaces, and the constant.

    `measured`: how the classifier does on answers that it was not trained with.
    """

    bias: float
    weights: Mapping[str, float]
    measured: Mapping[str, Any]

    def probability(self, text: str) -> float:
        """The probability that an answer is a refusal. Takes less than 0.1 ms, however long the answer is."""
        weights = self.weights
        score = self.bias + sum([weights[found] for found in ngrams(text) if found in weights])
        return 1 / (1 + math.exp(-score)) if score > -700 else 0.0


def ngrams(text: str) -> set[str]:
    """The n-grams of up to `MAX_NGRAM` words at the beginning of a text."""
    # Apostrophes are written in two ways.
    words = _WORD.findall(text[:MAX_CHARACTERS].lower().replace("\u2019", "'"))[:MAX_WORDS]
    found = set(words)
    before, before_that = _START, ""
    for word in words:
        pair = f"{before} {word}"
        found.add(pair)
        if before_that:
            found.add(f"{before_that} {pair}")
        before_that, before = before, word
    return found


@cache
def classifier() -> Classifier:
    """The classifier that is shipped."""
    stored = orjson.loads(WEIGHTS.read_bytes())
    return Classifier(stored["bias"], stored["weights"], stored["measured"])


def find_refusal(status: JobStatus, output: Sequence[Choice], kind: str | None = None) -> Verdict | None:
    """Whether an ended job's answer is a refusal; None if it has no answer, or is not for a client (`kind`).

    Of several choices, the first `MAX_CHOICES` are read, and all of these have to be refusals.
    """
    if kind is not None or status not in SUCCEEDED:
        return None
    verdicts = [verdict for choice in output[:MAX_CHOICES] if (verdict := _of_choice(choice)) is not None]
    if not verdicts:
        return None
    refused = all(verdict.refused for verdict in verdicts)
    by_provider = refused and any(verdict.source is RefusalSource.PROVIDER for verdict in verdicts)
    return Verdict(refused, RefusalSource.PROVIDER if by_provider else RefusalSource.CLASSIFIER)


def _of_choice(choice: Choice) -> Verdict | None:
    if choice.refused or choice.finish_reason == "content_filter":
        return Verdict(True, RefusalSource.PROVIDER)
    if choice.tool_calls:  # it does what it was asked for, whatever it says about it
        return Verdict(False, RefusalSource.CLASSIFIER)
    if not choice.text or choice.text.isspace():
        return None
    return Verdict(classifier().probability(choice.text) > 0.5, RefusalSource.CLASSIFIER)
