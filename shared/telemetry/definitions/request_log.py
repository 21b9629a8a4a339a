"""Metrics of the request log."""

from __future__ import annotations

from shared.telemetry.definitions.labels import API
from shared.telemetry.instruments import Aggregation, InstrumentSet, Label


class RequestLogMetrics:
    """Bodies, and the rows that wait for theirs."""

    def __init__(self, new: InstrumentSet) -> None:
        self.log_bodies = new.counter(
            "headrace_request_log_bodies_total",
            "Bodies for the request log, by outcome: `kept`, or `lost` because the job was gone before, or could not"
            " be read or redacted.",
            (Label("outcome", ("kept", "lost")),),
            API,
        )
        self.log_pending = new.gauge(
            "headrace_request_log_pending_bodies",
            "Ended jobs whose bodies are still to be written to the request log.",
            (),
            API,
            aggregation=Aggregation.MAX,
        )
        self.log_pending_age = new.gauge(
            "headrace_request_log_pending_seconds",
            "Seconds since the end of the job whose body has been waiting longest; 0 if none is.",
            (),
            API,
            aggregation=Aggregation.MAX,
        )
        self.purged_jobs = new.counter(
            "headrace_purged_jobs_total",
            "Jobs of which nothing is to be kept, whose content was deleted.",
            (),
            API,
        )
