"""A trained score: a calibrated logistic regression on the embedding of a task and on the heuristic's indicators.

`api.routing.fit` writes its weights to a JSON file. This module is imported only if such a file is configured, because
it needs NumPy and reads the embedding.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from api.routing import embedding
from api.routing.complexity import INDICATORS, Mode, indicators, spread
from api.routing.embedding import DIMENSIONS, Embedding
from api.routing.errors import RoutingModelError
from api.routing.request_text import RequestText
from shared.domain.field_types import message_of
from shared.domain.request import GenerateRequest

# Increase it when features change: weights of other features are useless.
FORMAT: Final = 1
FEATURES = DIMENSIONS + INDICATORS
# `fit` writes smaller files.
MAX_FILE_BYTES = 1 << 20
# Rounding differs slightly between processors.
_TOLERANCE = 0.002
_FIT_AGAIN = "train it again with `python -m api.routing fit`"

Share = Annotated[float, Field(ge=0, le=1)]


class CutPoints(BaseModel):
    """The scores from which on a request is not for the first level (`low`), and is for the last (`high`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: Share
    high: Share


class ClassifierFile(BaseModel):
    """The file's content. `fitted` is how the classifier was trained and how good it is, for people."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal[1]
    embedding: str
    fingerprint: list[float]
    bias: float
    weights: Annotated[list[float], Field(max_length=100_000)]
    thresholds: dict[Mode, CutPoints]
    fitted: dict[str, float | int | str] = Field(default_factory=dict)


class Classifier:
    """Scores requests with trained weights."""

    def __init__(self, file: ClassifierFile, vectors: Embedding) -> None:
        self._bias = file.bias
        self._weights = np.asarray(file.weights, dtype=np.float64)
        self._thresholds = file.thresholds
        self._vectors = vectors

    @classmethod
    def read(cls, path: Path) -> Classifier:
        """Read a file that `fit` has written, and the embedding that it needs.

        Raises:
            RoutingModelError: the file is missing, damaged, or of another version; or the embedding is not installed.
        """
        file = _read(path)
        _check(path, file)
        vectors = Embedding()
        expected = vectors.fingerprint()
        if len(file.fingerprint) != len(expected) or not np.allclose(
            file.fingerprint, expected, rtol=0, atol=_TOLERANCE
        ):
            raise _unusable(path, "it was trained with another version of the embedding than the one that is installed")
        return cls(file, vectors)

    def score(self, request: GenerateRequest) -> float:
        """The probability that a request is complex."""
        return sigmoid(self._bias + float(features(request, self._vectors) @ self._weights))

    def thresholds(self, mode: Mode, levels: int) -> tuple[float, ...]:
        """As in `Complexity`."""
        cuts = self._thresholds[mode]
        return spread(cuts.low, cuts.high, levels)


def features(request: GenerateRequest, vectors: Embedding) -> npt.NDArray[np.float64]:
    """The features of a request. Shape: (FEATURES,)."""
    found = np.empty(FEATURES)
    found[:DIMENSIONS] = vectors.vector(RequestText.of(request).task)
    found[DIMENSIONS:] = indicators(request)
    return found


def sigmoid(value: float) -> float:
    """The logistic function, for any value."""
    return 1 / (1 + math.exp(-value)) if value >= 0 else 1 - 1 / (1 + math.exp(max(value, -700)))


def _read(path: Path) -> ClassifierFile:
    try:
        with path.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise RoutingModelError(
            f"HEADRACE_ROUTING_MODEL: cannot read {path}: {error.strerror}; correct the path, {_FIT_AGAIN}, or unset"
            " the variable to use the shipped heuristic"
        ) from error
    if len(content) > MAX_FILE_BYTES:
        raise _unusable(path, "it is too large")
    try:
        return ClassifierFile.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise _unusable(path, f"{where}: {message_of(first)}" if where else message_of(first)) from error


def _check(path: Path, file: ClassifierFile) -> None:
    if file.embedding != embedding.NAME:
        raise _unusable(path, f"it was trained with the embedding {file.embedding!r}, not {embedding.NAME!r}")
    if len(file.weights) != FEATURES:
        raise _unusable(path, f"weights: there must be {FEATURES}, not {len(file.weights)}")
    if missing := [mode for mode in Mode if mode not in file.thresholds]:
        raise _unusable(path, f"thresholds: {missing[0].value} is missing")
    for mode, cuts in file.thresholds.items():
        if cuts.low > cuts.high:
            raise _unusable(path, f"thresholds.{mode.value}: low is greater than high")


def _unusable(path: Path, reason: str) -> RoutingModelError:
    return RoutingModelError(f"HEADRACE_ROUTING_MODEL: {path} is not a usable routing model: {reason}; {_FIT_AGAIN}")
