"""Reads /metrics of the processes of a running stack."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from shared.telemetry.instruments import Exporter
from shared.telemetry.metrics import Metrics
from tests.support.stack import Stack

Samples = dict[tuple[str, ...], float]


def targets_of(stack: Stack) -> Path:
    return Path(stack.environment["HEADRACE_METRICS_TARGETS"])


def addresses(stack: Stack, role: str) -> list[str]:
    """The metrics endpoints of the processes with a role."""
    files = sorted(targets_of(stack).glob(f"{role}-*.json"))
    return [target for file in files for group in json.loads(file.read_text()) for target in group["targets"]]


async def samples(stack: Stack, role: str) -> Samples:
    """The metrics of the processes with a role, summed, by name and label values (in the order of label names)."""
    found: Samples = {}
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        for address in addresses(stack, role):
            try:
                response = await client.get(f"http://{address}/metrics")
            except httpx.TransportError:
                if address in addresses(stack, role):
                    raise
                continue  # the process has ended meanwhile
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/plain; version=")
            for family in text_string_to_metric_families(response.text):
                for sample in family.samples:
                    key = (sample.name, *(value for _, value in sorted(sample.labels.items())))
                    found[key] = found.get(key, 0.0) + sample.value
    return found


def api_metrics(*models: str) -> Metrics:
    """The metrics of an API process that serves these models."""
    return Metrics(Exporter.API, models)


def worker_metrics(*models: str) -> Metrics:
    """The metrics of a worker of these models."""
    return Metrics(Exporter.WORKER, models)
