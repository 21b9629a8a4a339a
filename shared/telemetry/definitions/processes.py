"""Metrics that all processes have."""

from __future__ import annotations

from shared.config.models.reload import ReloadResult
from shared.telemetry.definitions.buckets import LOOP_LAG_BUCKETS
from shared.telemetry.definitions.labels import API, WORKER
from shared.telemetry.instruments import Aggregation, InstrumentSet, Label

# The results of a reload after which a process does not serve what models.yaml declares.
NOT_APPLIED = (ReloadResult.FAILED, ReloadResult.RESTART_NEEDED)


class ProcessMetrics:
    """The event loop and models.yaml."""

    def __init__(self, new: InstrumentSet) -> None:
        # The event loop

        self.loop_lag = new.histogram(
            "headrace_event_loop_lag_seconds",
            "Delay of timers on the event loop, measured 20 times a second.",
            (),
            LOOP_LAG_BUCKETS,
            API,
            WORKER,
        )

        # models.yaml

        self.models_reloads = new.counter(
            "headrace_models_reloads_total",
            "Times that the process read models.yaml again (SIGHUP): a failed reload changes nothing.",
            (Label("result", tuple(result.value for result in ReloadResult)),),
            API,
            WORKER,
        )
        self.models_outdated = new.gauge(
            "headrace_models_outdated",
            "1 if the last reload of models.yaml had this result, so that the process still serves the earlier models.",
            (Label("result", tuple(result.value for result in NOT_APPLIED)),),
            API,
            WORKER,
            aggregation=Aggregation.MAX,
        )
        for result in NOT_APPLIED:
            self.models_outdated.labels(result.value).set(0)
        self.models_loaded = new.gauge(
            "headrace_models_loaded_timestamp_seconds",
            "Unix time at which the process read the models.yaml that it uses.",
            (),
            API,
            WORKER,
            aggregation=Aggregation.MIN,
        )
