"""Metrics of webhooks."""

from __future__ import annotations

from shared.telemetry.definitions.buckets import WAIT_BUCKETS
from shared.telemetry.definitions.labels import API
from shared.telemetry.instruments import Aggregation, InstrumentSet, Label

STATE = Label("state", ("delivered", "dead"))
RESULT = Label("result", ("2xx", "3xx", "4xx", "5xx", "timeout", "unreachable", "forbidden_address"))


class WebhookMetrics:
    """Deliveries of events."""

    def __init__(self, new: InstrumentSet) -> None:
        self.webhook_deliveries = new.counter(
            "headrace_webhook_deliveries_total",
            "Deliveries of webhooks that have ended. `dead`: not delivered in 72 hours, or the receiver answered 410.",
            (STATE,),
            API,
        )
        self.webhook_tries = new.counter(
            "headrace_webhook_tries_total",
            "Requests to receivers of webhooks, by their answer. `forbidden_address`: nothing was sent, because the"
            " address is not public.",
            (RESULT,),
            API,
        )
        self.webhook_lag = new.histogram(
            "headrace_webhook_lag_seconds",
            "Time from an event, such as the end of a job, to the end of the first try to deliver it.",
            (),
            WAIT_BUCKETS,
            API,
        )
        self.webhooks_pending = new.gauge(
            "headrace_webhooks_pending",
            "Deliveries of webhooks that are due, or wait for their next try; counted up to 100,000.",
            (),
            API,
            aggregation=Aggregation.MAX,
        )
