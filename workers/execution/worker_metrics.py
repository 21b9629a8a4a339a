"""Gauges of a worker, collected at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from shared.telemetry import metrics
from shared.telemetry.metrics import model_label
from workers.engines.base import Engine
from workers.execution.runner import Runner


class WorkerMetrics(Collector):
    """Collects the load of the worker and of its engine; costs nothing between scrapes."""

    def __init__(self, model: str, runner: Runner, engine: Engine, stalled_s: Callable[[], float]) -> None:
        """`stalled_s` returns for how long messages have waited although slots are free."""
        self._labels = (model_label(model),)
        self._runner = runner
        self._engine = engine
        self._stalled_s = stalled_s

    def collect(self) -> Iterable[Metric]:
        runner, stats = self._runner, self._engine.stats()
        yield metrics.WORKER_JOBS.family([(self._labels, runner.running)])
        yield metrics.WORKER_SLOTS.family([(self._labels, runner.slot_pool.slots)])
        yield metrics.WORKER_READY.family([(self._labels, float(runner.accepting))])
        yield metrics.WORKER_STALLED.family([(self._labels, self._stalled_s())])
        yield metrics.ENGINE_RUNNING.family([(self._labels, stats.requests - stats.waiting)])
        yield metrics.ENGINE_WAITING.family([(self._labels, stats.waiting)])
        for gauge, value in (
            (metrics.ENGINE_KV_USAGE, "usage"),
            (metrics.ENGINE_PREEMPTIONS, "preemptions"),
            (metrics.ENGINE_CACHE_QUERIES, "queried_tokens"),
            (metrics.ENGINE_CACHE_HITS, "hit_tokens"),
        ):
            yield gauge.family([(self._labels, getattr(stats.cache, value))] if stats.cache is not None else ())
