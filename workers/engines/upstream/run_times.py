"""Records how long requests waited and ran at a serverless upstream, and the price of the run time."""

from __future__ import annotations

import logging

from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


class RunTimes:
    """The record of one model. `price_per_second` is None if it is not known."""

    def __init__(self, metrics: Metrics, model: str, price_per_second: float | None) -> None:
        self._metrics = metrics
        self._model = model
        self._label = metrics.model_label(model)
        self._price = price_per_second

    def record(self, request: str, waited_s: float | None, ran_s: float | None) -> None:
        """A request has ended, with the upstream's id. Times that the upstream did not report are None."""
        if waited_s is not None:
            self._metrics.upstream_queue.labels(self._label).observe(waited_s)
        if ran_s is not None:
            self._metrics.upstream_compute.labels(self._label).inc(ran_s)
            if self._price is not None:
                self._metrics.upstream_compute_cost.labels(self._label).inc(ran_s * self._price)
        logger.info(
            "model=%s upstream request %s waited %s and ran %s", self._model, request, _shown(waited_s), _shown(ran_s)
        )


def _shown(seconds: float | None) -> str:
    return "an unknown time" if seconds is None else f"{seconds:.3f} s"
