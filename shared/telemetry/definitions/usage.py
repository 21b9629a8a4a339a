"""Metrics of the ledger of usage and its sums."""

from __future__ import annotations

from shared.telemetry.definitions.labels import API, MODEL, WORKER
from shared.telemetry.instruments import Aggregation, InstrumentSet, Label


class UsageMetrics:
    """Usage and what it costs."""

    def __init__(self, new: InstrumentSet) -> None:
        self.usage_unpriced = new.counter(
            "headrace_usage_unpriced_total",
            "Entries of the ledger whose cost or charge is unknown because a price is missing, counted when they are"
            " added to the sums of usage.",
            (MODEL,),
            API,
        )
        self.usage_disagreements = new.counter(
            "headrace_usage_disagreements_total",
            "Answers whose tokens, as the provider has reported them, no tokenizer can result in, by the part of the"
            " usage.",
            (MODEL, Label("part", ("input", "output"))),
            WORKER,
        )
        self.usage_cost = new.counter(
            "headrace_usage_cost_dollars_total",
            "What entries of the ledger cost, counted when they are added to the sums of usage. Corrections are not"
            " counted.",
            (MODEL,),
            API,
        )
        self.usage_sums_age = new.gauge(
            "headrace_usage_sums_age_seconds",
            "Age of the sums that reports are read from: entries of the ledger that are older are in the sums.",
            (),
            API,
            aggregation=Aggregation.MAX,
        )
