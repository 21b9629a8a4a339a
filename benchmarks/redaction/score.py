"""Compares what a redactor finds in texts with what is to be found."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.redaction.texts import LANGUAGES, LabelledText
from shared.domain.redaction_rules import RedactionKind
from shared.privacy.redaction import Redactor


@dataclass(slots=True)
class Score:
    """Of a kind, or of a language: how many values were to be found, were found, and were not.

    `wrong`: how often something else was replaced as this kind. `left`: values that can be read in the redacted text.
    """

    values: int = 0
    found: int = 0
    wrong: int = 0
    left: int = 0

    @property
    def recall(self) -> float:
        """The share of the values that was found."""
        return self.found / self.values if self.values else 1.0

    @property
    def precision(self) -> float:
        """The share of values among what was replaced."""
        replaced = self.found + self.wrong
        return self.found / replaced if replaced else 1.0

    def add(self, values: int, replaced: int, left: int) -> None:
        """Add a text: its values, how often something was replaced, and how many values are left."""
        found = min(values, replaced)
        self.values += values
        self.found += found
        self.wrong += replaced - found
        self.left += left


@dataclass(slots=True)
class Scores:
    """The scores of many texts. `clean`: texts with nothing to be found, of which `changed` were changed."""

    kinds: dict[RedactionKind, Score] = field(default_factory=lambda: {kind: Score() for kind in RedactionKind})
    languages: dict[str, Score] = field(default_factory=lambda: {language: Score() for language in LANGUAGES})
    texts: int = 0
    characters: int = 0
    clean: int = 0
    changed: int = 0
    cpu_s: float = 0.0
    faults: list[tuple[LabelledText, str]] = field(default_factory=list)


def score(redactor: Redactor, texts: Iterable[LabelledText]) -> Scores:
    """Redact texts, and compare."""
    scores = Scores()
    for labelled in texts:
        began = time.process_time()
        redacted = redactor.redact_text(labelled.text)
        scores.cpu_s += time.process_time() - began
        scores.texts += 1
        scores.characters += len(labelled.text)
        expected = Counter(kind for kind, _ in labelled.values)
        faulty = expected != Counter(redacted.counts)
        for kind in RedactionKind:
            left = sum(1 for of, value in labelled.values if of is kind and _readable(value, redacted.text))
            faulty |= bool(left)
            for target in (scores.kinds[kind], scores.languages[labelled.language]):
                target.add(expected[kind], redacted.counts.get(kind, 0), left)
        if not labelled.values:
            scores.clean += 1
            scores.changed += redacted.text != labelled.text
        if faulty:
            scores.faults.append((labelled, redacted.text))
    return scores


def _readable(value: str, redacted: str) -> bool:
    return value in redacted


NAMES = {"en": "English", "de": "German", "fr": "French", "es": "Spanish", "ja": "Japanese"}


def table(scores: Scores) -> str:
    """The scores as a table of Markdown."""
    rows = [(f"`{kind.value}`", one) for kind, one in scores.kinds.items()]
    rows += [(NAMES[language], one) for language, one in scores.languages.items()]
    return "\n".join(
        [
            "| of | values | precision | recall | readable afterwards |",
            "|---|---:|---:|---:|---:|",
            *(
                f"| {name} | {one.values:,} | {one.precision:.1%} | {one.recall:.1%} | {one.left} |"
                for name, one in rows
            ),
        ]
    )


def summary(scores: Scores) -> Sequence[str]:
    """What the table leaves out, in sentences."""
    return [
        f"{scores.texts:,} texts with {scores.characters / scores.texts:.0f} characters on average;"
        f" {scores.changed} of {scores.clean:,} texts with nothing to be found were changed."
    ]
