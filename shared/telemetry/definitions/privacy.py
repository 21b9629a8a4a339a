"""Metrics of redaction and erasure."""

from __future__ import annotations

from collections.abc import Mapping

from shared.domain.redaction_rules import PRESIDIO_ENTITIES, RedactionKind
from shared.telemetry.definitions.labels import API
from shared.telemetry.instruments import InstrumentSet, Label

# What rules of projects find: their names are no labels, because projects choose them.
OWN = "own"
_KINDS = (*(kind.value for kind in RedactionKind), *PRESIDIO_ENTITIES, OWN)


class PrivacyMetrics:
    """What was removed from bodies, and calls that erased the data of end users."""

    def __init__(self, new: InstrumentSet) -> None:
        self.redactions = new.counter(
            "headrace_redactions_total",
            "What redaction has removed from bodies of the request log, by kind; `own`: by a rule of a project.",
            (Label("kind", _KINDS),),
            API,
        )
        self.erasures = new.counter(
            "headrace_erasures_total",
            "Calls that erased the data of an end user: `complete`, or `partial` if they left something for the next.",
            (Label("outcome", ("complete", "partial")),),
            API,
        )

    def redacted(self, counts: Mapping[str, int]) -> None:
        """Count what was removed from a body."""
        for kind, count in counts.items():
            self.redactions.labels(kind if kind in _KINDS else OWN).inc(count)
