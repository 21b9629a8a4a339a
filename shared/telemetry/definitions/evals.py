"""Metrics of judges."""

from __future__ import annotations

from shared.telemetry.definitions.labels import API, MODEL, SamplingSkip
from shared.telemetry.instruments import InstrumentSet, Label


class EvalMetrics:
    """Judgements, what they cost, and answers that were not judged."""

    def __init__(self, new: InstrumentSet) -> None:
        self.judgements = new.counter(
            "headrace_judgements_total",
            "Judgements that have ended. `unparsable`: the judge's answer was not one that the rubric allows; it is no"
            " score. `failed`: there was no answer.",
            (Label("state", ("scored", "unparsable", "failed")),),
            API,
        )
        self.judge_cost = new.counter(
            "headrace_judge_cost_dollars_total",
            "What the jobs of judges cost, by the judge's model, counted when their results are collected.",
            (MODEL,),
            API,
        )
        self.sampling_skipped = new.counter(
            "headrace_judge_skipped_answers_total",
            "Answers that were selected by the sampling of a rubric and not judged, by the reason.",
            (Label("reason", tuple(reason.value for reason in SamplingSkip)),),
            API,
        )
