"""Reads the lag of a process's event loop from its metrics."""

from __future__ import annotations

from collections.abc import Mapping

import httpx
from prometheus_client.parser import text_string_to_metric_families

LAG = "headrace_event_loop_lag_seconds"


def loop_lags(url: str, headers: Mapping[str, str]) -> dict[float, float]:
    """The cumulative counts of the lag's histogram, by the upper bound in seconds; the last bound is infinite."""
    text = httpx.get(url, headers=dict(headers), timeout=60).raise_for_status().text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {float(sample.labels["le"]): sample.value for sample in samples if sample.name == f"{LAG}_bucket"}
