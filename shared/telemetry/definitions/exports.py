"""Metrics of reading the request log."""

from __future__ import annotations

from shared.telemetry.definitions.labels import API
from shared.telemetry.instruments import InstrumentSet, Label

# Why there is nothing to show is one of the reasons of `api.request_log.bodies`.
_OPENED = ("shown", "not_logged", "level", "pending", "lost", "deleted", "erased", "expired", "no_key", "damaged")


class ExportMetrics:
    """What is read of the request log, and exported."""

    def __init__(self, new: InstrumentSet) -> None:
        self.bodies_opened = new.counter(
            "headrace_request_bodies_opened_total",
            "Requests of the log that somebody has opened, by whether what was asked and answered was shown, or why it"
            " is missing.",
            (Label("outcome", _OPENED),),
            API,
        )
        self.request_exports = new.counter(
            "headrace_request_exports_total",
            "Exports of the request log, by file format and by how they ended: `interrupted` by the client or a"
            " shutdown.",
            (Label("format", ("jsonl", "parquet")), Label("outcome", ("complete", "failed", "interrupted"))),
            API,
        )
        self.exported_requests = new.counter(
            "headrace_exported_requests_total",
            "Requests that exports have sent.",
            (),
            API,
        )
