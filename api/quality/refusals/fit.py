"""Trains the classifier of refusals: a logistic regression over n-grams of words.

The penalty on the squares of the weights (L2) lets no rare word decide alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from api.quality.intervals import Rate
from api.quality.refusals.examples import LANGUAGES, LabelledAnswer
from shared.domain.refusals import Classifier, ngrams

PENALTY = 0.5
STEPS = 12
# The value of the feature that all answers have: the penalty hardly holds the constant back.
CONSTANT = 3.0
# An n-gram of fewer answers says nothing about others.
MIN_ANSWERS = 2
# Smaller weights decide nothing, and are left out.
SMALLEST = 0.04
DIGITS = 3


def fit(answers: Sequence[LabelledAnswer]) -> Classifier:
    """Train the classifier. It is not measured yet."""
    names, matrix = _features(answers)
    labels: Any = np.array([answer.refused for answer in answers], dtype=float)
    weights, bias = _regression(matrix, labels)
    found = {
        name: round(float(weight), DIGITS)
        for name, weight in sorted(zip(names, weights, strict=True))
        if abs(weight) >= SMALLEST
    }
    return Classifier(round(bias, DIGITS), found, {})


def measure(classifier: Classifier, answers: Sequence[LabelledAnswer]) -> dict[str, Any]:
    """Precision and recall, with 95 % intervals, on these answers, and by language."""
    return {
        **_measure(classifier, answers),
        "languages": {
            language: _measure(classifier, [answer for answer in answers if answer.language == language])
            for language in LANGUAGES
        },
    }


def mistakes(classifier: Classifier, answers: Sequence[LabelledAnswer]) -> list[tuple[float, LabelledAnswer]]:
    """The answers that the classifier takes for what they are not, with the probabilities that it gives."""
    judged = [(classifier.probability(answer.text), answer) for answer in answers]
    return [(probability, answer) for probability, answer in judged if (probability > 0.5) is not answer.refused]


def write(classifier: Classifier, path: Path) -> int:
    """Write the file of the classifier; returns its size in bytes."""
    stored = {"bias": classifier.bias, "measured": classifier.measured, "weights": classifier.weights}
    content = orjson.dumps(stored, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    path.write_bytes(content)
    return len(content)


def _measure(classifier: Classifier, answers: Sequence[LabelledAnswer]) -> dict[str, Any]:
    judged = [(classifier.probability(answer.text) > 0.5, answer.refused) for answer in answers]
    found = judged.count((True, True))
    return {
        "n": len(judged),
        "precision": _rate(Rate(found, found + judged.count((True, False)))),
        "recall": _rate(Rate(found, found + judged.count((False, True)))),
    }


def _rate(rate: Rate) -> Mapping[str, Any]:
    value, interval = rate.rate, rate.interval
    if value is None or interval is None:
        return {"count": 0, "n": 0, "rate": None, "low": None, "high": None}
    ends = {"rate": value, "low": interval.low, "high": interval.high}
    return {"count": rate.count, "n": rate.n, **{name: round(end, DIGITS) for name, end in ends.items()}}


def _features(answers: Sequence[LabelledAnswer]) -> tuple[list[str], Any]:
    """The n-grams of at least `MIN_ANSWERS` answers, and which answer has which."""
    found = [ngrams(answer.text) for answer in answers]
    counts = Counter(name for names in found for name in names)
    names = sorted(name for name, count in counts.items() if count >= MIN_ANSWERS)
    places = {name: place for place, name in enumerate(names)}
    matrix: Any = np.zeros((len(answers), len(names)))
    for row, present in enumerate(found):
        matrix[row, [places[name] for name in present if name in places]] = 1
    return names, matrix


def _regression(matrix: Any, labels: Any) -> tuple[Any, float]:
    """The weights and the constant, by Newton's method in the space of the answers, of which there are few."""
    # Both kinds of answers weigh the same, so that the mix of the examples does not decide.
    importance = np.where(labels == 1, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
    products = matrix @ matrix.T + CONSTANT**2
    scores = np.zeros(len(labels))
    for _ in range(STEPS):
        chances = 1 / (1 + np.exp(-scores))
        curvature = np.maximum(importance * chances * (1 - chances), 1e-9)
        targets = scores + importance * (labels - chances) / curvature
        parts = np.linalg.solve(products + np.diag(PENALTY / curvature), targets)
        scores = products @ parts
    return matrix.T @ parts, float(CONSTANT**2 * parts.sum())
