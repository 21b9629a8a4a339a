"""Gauges of a worker, collected at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from shared.telemetry.metrics import Metrics
from workers.engines.base import ManagedEngine
from workers.execution.runner import Runner


class WorkerMetrics(Collector):
    """Collects the load of the worker and of its engine; costs nothing between scrapes."""

    def __init__(
        self, metrics: Metrics, model: str, runner: Runner, engine: ManagedEngine, stalled_s: Callable[[], float]
    ) -> None:
        """`stalled_s` returns for how long messages have waited although slots are free."""
        self._metrics = metrics
        self._labels = (metrics.model_label(model),)
        self._runner = runner
        self._engine = engine
        self._stalled_s = stalled_s

    def collect(self) -> Iterable[Metric]:
        metrics, runner, stats = self._metrics, self._runner, self._engine.stats()
        yield metrics.worker_jobs.family([(self._labels, runner.running)])
        yield metrics.worker_slots.family([(self._labels, runner.slot_pool.slots)])
        yield metrics.worker_ready.family([(self._labels, float(runner.accepting))])
        yield metrics.structured_outputs_waiting.family([(self._labels, runner.waiting_structures)])
        yield metrics.worker_stalled.family([(self._labels, self._stalled_s())])
        yield metrics.engine_requests_running.family([(self._labels, stats.requests - stats.waiting)])
        yield metrics.engine_requests_waiting.family([(self._labels, stats.waiting)])
        gate = runner.gate
        breakers = [] if gate is None else [(self._labels, float(gate.breaker is not None))]
        yield metrics.upstream_breaker_open.family(breakers)
        yield metrics.upstream_messages_held.family([] if gate is None else [(self._labels, gate.waiting)])
        endpoints = [((*self._labels, name), float(state)) for name, state in stats.endpoints.items()]
        yield metrics.upstream_endpoint_available.family(endpoints)
        for gauge, value in (
            (metrics.engine_kv_cache_usage, "usage"),
            (metrics.engine_preemptions, "preemptions"),
            (metrics.engine_prefix_cache_queried_tokens, "queried_tokens"),
            (metrics.engine_prefix_cache_hit_tokens, "hit_tokens"),
        ):
            yield gauge.family([(self._labels, getattr(stats.cache, value))] if stats.cache is not None else ())
        drafts = stats.drafts
        yield metrics.engine_drafted_tokens.family([(self._labels, drafts.drafted_tokens)] if drafts else ())
        yield metrics.engine_accepted_tokens.family([(self._labels, drafts.accepted_tokens)] if drafts else ())
