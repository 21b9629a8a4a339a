"""Trains the classifier of complexity, and measures it on requests that it has not seen."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from api.routing import embedding
from api.routing.classifier import FORMAT, ClassifierFile, CutPoints, features
from api.routing.complexity import Mode
from api.routing.embedding import Embedding
from api.routing.errors import RoutingModelError
from api.routing.examples import Example
from api.routing.regression import (
    Array,
    Folds,
    Logistic,
    calibration,
    cross_calibrated,
    cross_validated_logits,
    fit_logistic,
    log_loss,
)
from api.routing.request_text import RequestText

FOLDS = 5
# Different tasks of each kind that are needed: one per fold to learn from, and some more.
MIN_PER_KIND = 10
_PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0)
# The penalty is chosen on a part of the examples; more would not change it, but take minutes.
_PENALTY_EXAMPLES = 4000
_BINS = 10
# One-sided 95 %.
_Z = 1.645


class FitError(RoutingModelError):
    """No classifier was trained; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """What a threshold does. Shares of all requests.

    `to_first`: they go to the first model. `quality`: they get a model that suffices. `at_least`: the lower end of the
    95 % confidence interval of the quality.
    """

    target: float
    threshold: float
    to_first: float
    quality: float
    at_least: float


@dataclass(frozen=True, slots=True)
class Report:
    """How good a classifier is on requests that it was not trained on, by cross-validation.

    `brier` is the mean squared error of the score, and `brier_of_share` that of a constant score. `calibration_error`:
    the mean difference between the score and the share of complex requests, in bins of equal size.
    `quality_of_first`: the quality if the first model answered everything.
    """

    examples: int
    tasks: int
    ambiguous: int
    complex_share: float
    quality_of_first: float
    accuracy: float
    majority: float
    brier: float
    brier_of_share: float
    calibration_error: float
    points: dict[Mode, OperatingPoint]


def targets(quality: float) -> dict[Mode, float]:
    """The quality that each mode aims at, if `auto:balanced` aims at this one: twice or a fifth of its errors."""
    return {Mode.COST: max(0.0, 1 - 2 * (1 - quality)), Mode.BALANCED: quality, Mode.QUALITY: 1 - (1 - quality) / 5}


def fit(examples: Sequence[Example], quality: float) -> tuple[ClassifierFile, Report]:
    """Train a classifier.

    Raises:
        FitError: there are too few examples, or the labels do not depend on the requests.
        RoutingModelError: the embedding is not installed.
    """
    tasks = [_digest(example) for example in examples]
    y = np.array([example.label for example in examples])
    folds = _folds(tasks, y)
    vectors = Embedding()
    x = np.array([features(example.request, vectors) for example in examples])
    penalty = _penalty(x, y, folds)
    logits = cross_validated_logits(x, y, folds, penalty)
    slope, offset = calibration(logits, y)
    p = cross_calibrated(logits, y, folds)
    errors, errors_of_share = (p - y) ** 2, (y.mean() - y) ** 2
    if slope <= 0 or not _is_smaller(errors, errors_of_share):
        raise FitError(
            "the labels cannot be predicted from these requests: a constant score may be as good. Check the labels, or"
            " add examples"
        )
    points = {mode: operating_point(p, y, target) for mode, target in targets(quality).items()}
    is_complex = y >= 0.5
    report = Report(
        examples=len(examples),
        tasks=len(set(tasks)),
        ambiguous=_ambiguous(tasks, y),
        complex_share=float(is_complex.mean()),
        quality_of_first=1 - float(y.mean()),
        accuracy=float(np.mean((p >= 0.5) == is_complex)),
        majority=float(max(is_complex.mean(), 1 - is_complex.mean())),
        brier=float(errors.mean()),
        brier_of_share=float(errors_of_share.mean()),
        calibration_error=calibration_error(p, y),
        points=points,
    )
    model = fit_logistic(x, y, penalty).scaled(slope, offset)
    return _file(model, vectors, report), report


def operating_point(p: Array, y: Array, target: float) -> OperatingPoint:
    """The highest threshold whose quality is at least the target with 95 % confidence. 0 if there is none."""
    order = np.argsort(p, kind="stable")
    scores, missed = p[order], np.cumsum(y[order])
    best = OperatingPoint(target, 0.0, 0.0, 1.0, _lower_bound(0.0, len(p)))
    if best.at_least < target:
        return best
    for at in range(len(scores)):
        following = scores[at + 1] if at + 1 < len(scores) else min(1.0, scores[at] + 1e-6)
        if following <= scores[at]:
            continue  # the same score: both or none
        lowest = _lower_bound(float(missed[at]), len(p))
        if lowest < target:
            break
        threshold = float(scores[at] + following) / 2
        best = OperatingPoint(target, threshold, (at + 1) / len(p), 1 - float(missed[at]) / len(p), lowest)
    return best


def calibration_error(p: Array, y: Array) -> float:
    """The expected calibration error, in bins with the same number of requests."""
    parts = np.array_split(np.argsort(p, kind="stable"), min(_BINS, len(p)))
    return float(sum(len(part) * abs(p[part].mean() - y[part].mean()) for part in parts) / len(p))


def write(file: ClassifierFile, path: Path) -> int:
    """Write a classifier's file, replacing an earlier one. Returns its size in bytes.

    Raises:
        FitError: it cannot be written.
    """
    content = file.model_dump_json().encode() + b"\n"
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_bytes(content)
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise FitError(f"cannot write {path}: {error.strerror}") from error
    return len(content)


def _digest(example: Example) -> bytes:
    return hashlib.sha256(RequestText.of(example.request).task.encode("utf-8", "replace")).digest()


def _folds(tasks: Sequence[bytes], y: Array) -> Folds:
    """The fold of each example. The same task is in one fold only, and each fold has both kinds."""
    kinds: dict[bytes, bool] = {}
    for task, label in zip(tasks, y, strict=True):
        kinds.setdefault(task, bool(label >= 0.5))
    fold_of: dict[bytes, int] = {}
    for kind, name in ((False, "simple"), (True, "complex")):
        ordered = sorted(task for task, found in kinds.items() if found is kind)
        if len(ordered) < MIN_PER_KIND:
            raise FitError(
                f"at least {MIN_PER_KIND} different {name} requests (label {'at least' if kind else 'below'} 0.5) are"
                f" needed, and some hundred are better; there are {len(ordered)}"
            )
        fold_of.update({task: at % FOLDS for at, task in enumerate(ordered)})
    return np.array([fold_of[task] for task in tasks])


def _penalty(x: Array, y: Array, folds: Folds) -> float:
    part = np.linspace(0, len(y) - 1, min(len(y), _PENALTY_EXAMPLES)).astype(int)
    x, y, folds = x[part], y[part], folds[part]
    return min(_PENALTIES, key=lambda penalty: log_loss(cross_validated_logits(x, y, folds, penalty), y))


def _is_smaller(errors: Array, others: Array) -> bool:
    """Whether errors are smaller than others of the same requests, with 95 % confidence."""
    gains = others - errors
    return bool(gains.mean() > _Z * gains.std() / math.sqrt(len(gains)))


def _ambiguous(tasks: Sequence[bytes], y: Array) -> int:
    labels: dict[bytes, set[float]] = {}
    for task, label in zip(tasks, y, strict=True):
        labels.setdefault(task, set()).add(float(label))
    return sum(len(found) > 1 for found in labels.values())


def _lower_bound(missed: float, count: int) -> float:
    """The lower end of Wilson's interval for the share of requests that are not missed."""
    good = 1 - missed / count
    center = good + _Z**2 / (2 * count)
    margin = _Z * math.sqrt(good * (1 - good) / count + _Z**2 / (4 * count**2))
    return (center - margin) / (1 + _Z**2 / count)


def _file(model: Logistic, vectors: Embedding, report: Report) -> ClassifierFile:
    return ClassifierFile(
        format=FORMAT,
        embedding=embedding.NAME,
        fingerprint=vectors.fingerprint(),
        bias=round(model.bias, 6),
        weights=[round(float(weight), 6) for weight in model.weights],
        thresholds={mode: _cut_points(point.threshold) for mode, point in report.points.items()},
        fitted={
            "examples": report.examples,
            "accuracy": round(report.accuracy, 4),
            "brier": round(report.brier, 4),
            "calibration_error": round(report.calibration_error, 4),
            **{f"{mode.value}_to_first": round(point.to_first, 4) for mode, point in report.points.items()},
            **{f"{mode.value}_quality": round(point.quality, 4) for mode, point in report.points.items()},
        },
    )


def _cut_points(low: float) -> CutPoints:
    """Two labels say nothing about models between the first and the last: they get the lower half of the rest."""
    return CutPoints(low=round(low, 4), high=round((1 + low) / 2, 4))
