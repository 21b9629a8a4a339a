"""What vLLM tells of itself, at each step of its scheduler: kept as plain numbers, and read when Prometheus asks.

vLLM's own Prometheus logger observes at each step and at each token, on the loop that relays the tokens; ours takes the
step's numbers as they are and observes once a finished request. `disable_log_stats: false` in a model's options adds
vLLM's own metrics (`vllm:...`) beside ours, at their price. Figures: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.v1.metrics.loggers import PrometheusStatLogger

from shared.telemetry.metrics import Metrics
from workers.engines.base import CacheStats


class VllmStats:
    """The numbers of one model's engine, over its restarts."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        label = metrics.model_label(model)
        self._queue = metrics.engine_queue.labels(label)
        self._prefill = metrics.engine_prefill.labels(label)
        self._preemptions = 0
        self._queried_tokens = 0
        self._hit_tokens = 0
        # By the engine's number: with data parallelism there are several.
        self._waiting: dict[int, int] = {}
        self._usage: dict[int, float] = {}

    @property
    def waiting(self) -> int:
        """Requests that wait inside the engine."""
        return sum(self._waiting.values())

    @property
    def cache(self) -> CacheStats:
        """The fullest engine's cache, and all engines' counts."""
        return CacheStats(
            max(self._usage.values(), default=0.0), self._preemptions, self._queried_tokens, self._hit_tokens
        )

    def begin(self, engines: Sequence[int]) -> None:
        """These engines start."""
        self._waiting = dict.fromkeys(engines, 0)
        self._usage = dict.fromkeys(engines, 0.0)

    def scheduled(self, engine: int, stats: Any) -> None:
        """vLLM's `SchedulerStats` of a step."""
        self._waiting[engine] = stats.num_waiting_reqs + getattr(stats, "num_skipped_waiting_reqs", 0)
        self._usage[engine] = stats.kv_cache_usage
        cache = stats.prefix_cache_stats
        self._queried_tokens += cache.queries
        self._hit_tokens += cache.hits

    def stepped(self, stats: Any) -> None:
        """vLLM's `IterationStats` of a step."""
        self._preemptions += stats.num_preempted_reqs
        for request in stats.finished_requests:
            if request.prefill_time >= 0:  # else it was aborted before its first token
                self._queue.observe(request.queued_time)
                self._prefill.observe(request.prefill_time)


def stat_logger(stats: VllmStats, *, beside_own: bool) -> type[PrometheusStatLogger]:
    """A `StatLoggerFactory` that feeds these numbers.

    vLLM adds its own Prometheus logger wherever it is not given a kind of it, so this is one: in its place, or, with
    `beside_own`, as well as it.
    """

    class StatLogger(PrometheusStatLogger):  # type: ignore[misc]  # vLLM ships no types
        def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
            stats.begin(engine_indexes or [0])
            if beside_own:
                super().__init__(vllm_config, engine_indexes)

        def record(
            self, scheduler_stats: Any, iteration_stats: Any, *more: Any, engine_idx: int = 0, **named: Any
        ) -> None:
            if scheduler_stats is not None:
                stats.scheduled(engine_idx, scheduler_stats)
            if iteration_stats is not None:
                stats.stepped(iteration_stats)
            if beside_own:
                super().record(scheduler_stats, iteration_stats, *more, engine_idx=engine_idx, **named)

        def log_engine_initialized(self) -> None:
            if beside_own:
                super().log_engine_initialized()

        def record_sleep_state(self, *arguments: Any, **named: Any) -> None:
            if beside_own:
                super().record_sleep_state(*arguments, **named)

        def record_admission_rejection(self, reason: str) -> None:
            if beside_own:
                super().record_admission_rejection(reason)

    return StatLogger
