"""The common part of the specs of serverless engines, whose upstream runs a job and is polled for its state."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from shared.config.models.operational import Operational
from shared.config.models.upstream import UpstreamOptions


class PolledOptions(UpstreamOptions):
    """Polls, the cold start, and the price of run time. Times are in seconds."""

    read_timeout_s: float = Field(
        300, gt=0, description="Without any progress, once the upstream has started to run the request."
    )
    start_timeout_s: Operational[float] = Field(
        900, gt=0, description="Until the upstream starts to run the request: a cold start."
    )
    poll_interval_s: Operational[float] = Field(
        0.1, gt=0, description="Between two polls of a job, while there is progress."
    )
    max_poll_interval_s: Operational[float] = Field(
        5, gt=0, description="Between two polls of a job, if the rate allows it."
    )
    max_polls_per_s: Operational[float] = Field(
        25, gt=0, description="Of all jobs of a worker; with many jobs, intervals grow."
    )
    price_per_second: Operational[float | None] = Field(
        None, ge=0, description="Of run time, in any currency; counted in headrace_upstream_compute_cost_total."
    )

    @model_validator(mode="after")
    def _ordered_intervals(self) -> Self:
        if self.max_poll_interval_s < self.poll_interval_s:
            raise ValueError("max_poll_interval_s must be at least poll_interval_s")
        return self
