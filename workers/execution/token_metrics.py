"""Counts one running job's tokens, as often as they are written, not as often as they are made."""

from __future__ import annotations

from shared.telemetry.metrics import Metrics


class TokenMetrics:
    """The gaps between a job's tokens. What is written together shares the time since what was written before it."""

    __slots__ = ("_gaps", "_last", "_made")

    def __init__(self, metrics: Metrics, model: str) -> None:
        label = metrics.model_label(model)
        self._made = metrics.generated_tokens.labels(label)
        self._gaps = metrics.inter_token_latency.labels(label)
        self._last: dict[int, float] = {}

    def made(self, choice: int, tokens: int, now: float) -> None:
        """So many tokens of a choice are ready to be written, at this moment of the monotonic clock."""
        if not tokens:
            return
        self._made.inc(tokens)
        last = self._last.get(choice)
        if last is not None:
            self._gaps.observe((now - last) / tokens, tokens)
        self._last[choice] = now
