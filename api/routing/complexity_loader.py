"""Chooses how complexity is judged: by a trained classifier, or by the shipped heuristic."""

from __future__ import annotations

from pathlib import Path

from api.routing.complexity import Complexity, Heuristic


def load_complexity(model: Path | None) -> Complexity:
    """Read the classifier in a file; without a file, return the heuristic. Takes up to half a second.

    Raises:
        RoutingModelError: the file cannot be used.
    """
    if model is None:
        return Heuristic()
    from api.routing.classifier import Classifier  # NumPy and the embedding, which the heuristic does not need

    return Classifier.read(model)
