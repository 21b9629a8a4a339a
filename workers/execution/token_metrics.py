"""Token counts and latencies of one running job, updated at each flush instead of at each token."""

from __future__ import annotations

from shared.telemetry.metrics import Metrics


class TokenMetrics:
    """Counts a job's tokens and the gaps between them. Tokens of one flush share the time since the flush before."""

    __slots__ = ("_count", "_gaps", "_last")

    def __init__(self, metrics: Metrics, model: str) -> None:
        label = metrics.model_label(model)
        self._count = metrics.generated_tokens.labels(label)
        self._gaps = metrics.inter_token_latency.labels(label)
        self._last: dict[int, float] = {}

    def record(self, choice: int, tokens: int, now: float) -> None:
        """Record new tokens of a choice at a moment of the monotonic clock."""
        if not tokens:
            return
        self._count.inc(tokens)
        last = self._last.get(choice)
        if last is not None:
            self._gaps.observe((now - last) / tokens, tokens)
        self._last[choice] = now
