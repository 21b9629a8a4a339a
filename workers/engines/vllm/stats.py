"""Keeps the statistics of vLLM's scheduler as plain numbers, which are read when Prometheus scrapes.

vLLM's own Prometheus logger records observations for each step and each token, on the event loop that relays the
tokens. This one stores the numbers of a step and records observations only for finished requests.
`disable_log_stats: false` in a model's options adds vLLM's own metrics (`vllm:...`), at their cost. Measurements:
docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.v1.metrics.loggers import PrometheusStatLogger

from shared.telemetry.metrics import Metrics
from workers.engines.base import CacheStats, DraftStats

NO_SPECULATION = "none"


class VllmStats:
    """Statistics of one model's engine, kept across its restarts."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._label = label = metrics.model_label(model)
        self._info = metrics.engine_info
        self._queue = metrics.engine_queue.labels(label)
        self._prefill = metrics.engine_prefill.labels(label)
        self._preemptions = 0
        self._queried_tokens = 0
        self._hit_tokens = 0
        self._speculates = False
        self._drafted_tokens = 0
        self._accepted_tokens = 0
        # By engine index: data parallelism has several engines.
        self._waiting: dict[int, int] = {}
        self._usage: dict[int, float] = {}

    @property
    def waiting(self) -> int:
        """Number of requests that are queued in the engine."""
        return sum(self._waiting.values())

    @property
    def cache(self) -> CacheStats:
        """The usage of the fullest engine's cache, and the counts of all engines together."""
        return CacheStats(
            max(self._usage.values(), default=0.0), self._preemptions, self._queried_tokens, self._hit_tokens
        )

    @property
    def drafts(self) -> DraftStats | None:
        """The counts of all engines together; None if the model does not speculate."""
        return DraftStats(self._drafted_tokens, self._accepted_tokens) if self._speculates else None

    def started(self, dtype: str, quantization: str, attention: str, speculation: str, start: str) -> None:
        """Export what the engine runs with. All of it comes from the model's entry and this machine."""
        self._speculates = speculation != NO_SPECULATION
        self._info.labels(self._label, dtype, quantization, attention, speculation, start).set(1)

    def reset(self, engines: Sequence[int]) -> None:
        """Forget the state of earlier engines; called when these start."""
        self._waiting = dict.fromkeys(engines, 0)
        self._usage = dict.fromkeys(engines, 0.0)

    def record_scheduler(self, engine: int, stats: Any) -> None:
        """Record vLLM's `SchedulerStats` of a step."""
        self._waiting[engine] = stats.num_waiting_reqs + getattr(stats, "num_skipped_waiting_reqs", 0)
        self._usage[engine] = stats.kv_cache_usage
        cache = stats.prefix_cache_stats
        self._queried_tokens += cache.queries
        self._hit_tokens += cache.hits
        if (drafts := stats.spec_decoding_stats) is not None:
            self._drafted_tokens += drafts.num_draft_tokens
            self._accepted_tokens += drafts.num_accepted_tokens

    def record_iteration(self, stats: Any) -> None:
        """Record vLLM's `IterationStats` of a step."""
        self._preemptions += stats.num_preempted_reqs
        for request in stats.finished_requests:
            if request.prefill_time >= 0:  # negative if it was aborted before its first token
                self._queue.observe(request.queued_time)
                self._prefill.observe(request.prefill_time)


def stat_logger(stats: VllmStats, *, with_vllms_own: bool) -> type[PrometheusStatLogger]:
    """A `StatLoggerFactory` that fills `stats`.

    It is a subclass of vLLM's Prometheus logger because vLLM adds that logger unless it is given one of its kind. The
    superclass is used only with `with_vllms_own`.
    """

    class StatLogger(PrometheusStatLogger):  # type: ignore[misc]  # vLLM ships no types
        def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
            stats.reset(engine_indexes or [0])
            if with_vllms_own:
                super().__init__(vllm_config, engine_indexes)

        def record(
            self, scheduler_stats: Any, iteration_stats: Any, *more: Any, engine_idx: int = 0, **named: Any
        ) -> None:
            if scheduler_stats is not None:
                stats.record_scheduler(engine_idx, scheduler_stats)
            if iteration_stats is not None:
                stats.record_iteration(iteration_stats)
            if with_vllms_own:
                super().record(scheduler_stats, iteration_stats, *more, engine_idx=engine_idx, **named)

        def log_engine_initialized(self) -> None:
            if with_vllms_own:
                super().log_engine_initialized()

        def record_sleep_state(self, *arguments: Any, **named: Any) -> None:
            if with_vllms_own:
                super().record_sleep_state(*arguments, **named)

        def record_admission_rejection(self, reason: str) -> None:
            if with_vllms_own:
                super().record_admission_rejection(reason)

    return StatLogger
