"""Names of persons, places and organizations, found by Microsoft Presidio. Optional: the extra `presidio`.

It needs a model of the language, such as spaCy's `en_core_web_sm`, which is installed apart. It takes some milliseconds
for each text, a hundred times as long as everything else.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

from shared.domain.redaction_rules import PRESIDIO_ENTITIES

_LANGUAGE = "en"
_MIN_SCORE = 0.5
_ENTITIES = [entity.upper() for entity in PRESIDIO_ENTITIES]


class PresidioMissing(Exception):
    """`presidio: true` needs the package presidio-analyzer, which is not installed: pip install '.[presidio]'"""

    def __str__(self) -> str:
        return self.__doc__ or ""


@cache
def _analyzer() -> Any:
    try:
        from presidio_analyzer import AnalyzerEngine  # it takes seconds, and is optional
    except ImportError as error:
        raise PresidioMissing from error
    return AnalyzerEngine()


def is_installed() -> bool:
    """Whether the package is installed. It is not imported."""
    return find_spec("presidio_analyzer") is not None


def load() -> None:
    """Load the package and the model of the language. Raises `PresidioMissing`, as `entities` does."""
    _analyzer()


def entities(text: str) -> list[tuple[str, list[tuple[int, int]]]]:
    """Where the entities are, by kind. Those of a kind do not overlap, and are in order.

    Raises:
        PresidioMissing: the package is not installed.
    """
    results = _analyzer().analyze(text=text, language=_LANGUAGE, entities=_ENTITIES, score_threshold=_MIN_SCORE)
    return [(kind, _spans(results, kind)) for kind in PRESIDIO_ENTITIES]


def _spans(results: Any, kind: str) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for one in sorted(results, key=lambda result: (result.start, -result.end)):
        if one.entity_type.lower() == kind and (not found or one.start >= found[-1][1]):
            found.append((one.start, one.end))
    return found
