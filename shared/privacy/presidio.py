"""Names of persons, places and organizations, found by Microsoft Presidio. Optional: the extra `presidio`.

It needs one of spaCy's English models, which is installed apart. It takes some milliseconds for each text, a hundred
times as long as everything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from threading import Lock
from typing import Any

from shared.domain.redaction_rules import PRESIDIO_ENTITIES

_LANGUAGE = "en"
# The first one that is installed is used: the larger, the more it finds.
MODELS = ("en_core_web_lg", "en_core_web_md", "en_core_web_sm")
# The models' labels, and what they are here. Presidio's own configuration ignores organizations.
_LABELS = {"PERSON": "PERSON", "GPE": "LOCATION", "LOC": "LOCATION", "FAC": "LOCATION", "ORG": "ORGANIZATION"}
_IGNORED = (
    "CARDINAL", "DATE", "EVENT", "LANGUAGE", "LAW", "MONEY", "NORP", "ORDINAL", "PERCENT", "PRODUCT", "QUANTITY",
    "TIME", "WORK_OF_ART",
)  # fmt: skip
_ENTITIES = [entity.upper() for entity in PRESIDIO_ENTITIES]
# Characters that are searched at once: a model needs about a gigabyte for each 100,000, and refuses a million.
PIECE = 20_000
# The end of a piece is moved back to a line break or a space, by this at most.
_MARGIN = 1_000
# One text at a time: what a model shares between its calls is not made for several threads.
_LOCK = Lock()


class PresidioMissing(Exception):
    """`presidio: true` needs the package presidio-analyzer and an English model of spaCy, which are not installed:
    pip install '.[presidio]', and python -m spacy download en_core_web_lg"""

    def __str__(self) -> str:
        return " ".join((self.__doc__ or "").split())


def _model() -> str | None:
    """The model that is used; None if there is none."""
    return next((name for name in MODELS if _is_package(name)), None)


def _is_package(name: str) -> bool:
    """Whether a package is installed, as Presidio asks before it downloads a model."""
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def is_installed() -> bool:
    """Whether the package and a model are installed. They are not imported."""
    return _is_package("presidio_analyzer") and _model() is not None


@cache
def _analyzer() -> Any:
    # Otherwise Presidio would download a model, and end the process if it cannot.
    if (model := _model()) is None:
        raise PresidioMissing
    try:  # it takes seconds, and is optional
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
        from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine
        from presidio_analyzer.predefined_recognizers import SpacyRecognizer
    except ImportError as error:
        raise PresidioMissing from error
    labels = NerModelConfiguration(
        labels_to_ignore=[*_IGNORED], model_to_presidio_entity_mapping=_LABELS, low_score_entity_names=[]
    )
    engine = SpacyNlpEngine([{"lang_code": _LANGUAGE, "model_name": model}], labels)
    engine.load()
    # Without the other recognizers, of which some read lists from the network.
    recognizer = SpacyRecognizer(supported_language=_LANGUAGE, supported_entities=_ENTITIES)
    registry = RecognizerRegistry([recognizer], supported_languages=[_LANGUAGE])
    return AnalyzerEngine(registry, engine, supported_languages=[_LANGUAGE])


def load() -> None:
    """Load the package and the model of the language. Raises `PresidioMissing`, as `entities` does."""
    with _LOCK:
        _analyzer()


def entities(text: str) -> list[tuple[int, int, str]]:
    """Where the entities are, and of which kind. They do not overlap, and are in order.

    Raises:
        PresidioMissing: the package or a model is not installed.
    """
    found: list[tuple[int, int, str]] = []
    with _LOCK:
        for start, end in _pieces(text):
            results = _analyzer().analyze(text=text[start:end], language=_LANGUAGE, entities=_ENTITIES)
            for one in sorted(results, key=lambda result: (result.start, -result.end)):
                if not found or start + one.start >= found[-1][1]:
                    found.append((start + one.start, start + one.end, one.entity_type.lower()))
    return found


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Parts of a text that are searched one after the other: they end at line breaks, or else between words."""
    start = 0
    while start < len(text):
        end = start + PIECE
        if end < len(text):
            for mark in ("\n", " "):
                if (found := text.rfind(mark, end - _MARGIN, end)) >= 0:
                    end = found + 1
                    break
        yield start, min(end, len(text))
        start = end
