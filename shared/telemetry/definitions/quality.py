"""Metrics of the quality of answers."""

from __future__ import annotations

from shared.domain.feedback import FeedbackSource, Rating
from shared.domain.refusals import RefusalSource
from shared.telemetry.definitions.labels import API, MODEL, WORKER
from shared.telemetry.instruments import InstrumentSet, Label


class QualityMetrics:
    """Feedback and refusals."""

    def __init__(self, new: InstrumentSet) -> None:
        self.feedback = new.counter(
            "headrace_feedback_total",
            "Feedback that was given or changed, by who has given it, and by its rating; `other`: of other metrics.",
            (
                Label("source", tuple(source.value for source in FeedbackSource)),
                Label("rating", (*(rating.value for rating in Rating), "other")),
            ),
            API,
        )
        self.refusals = new.counter(
            "headrace_refusals_total",
            "Answers in which the model refused to answer, by who says so. Those of the response cache are not counted"
            " again.",
            (MODEL, Label("source", tuple(source.value for source in RefusalSource))),
            API,
            WORKER,
        )
