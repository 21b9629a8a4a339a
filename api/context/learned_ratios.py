"""Learns how many tokens a byte of a prompt has, from the usage of recent jobs.

Each project's ratio is learned from its own jobs only. A project with too few jobs has the median of the projects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from api.context.estimates import DEFAULT_TOKENS_PER_BYTE, TokenEstimates
from api.context.usage_store import UsageStore
from shared.config.models.loader import Registry
from shared.runtime.periodic import run_periodically
from shared.telemetry.metrics import Metrics

INTERVAL_S = 30.0
# With fewer jobs, the default ratio applies.
MIN_JOBS = 5
QUANTILE = 0.95
# The bounds of a ratio, whatever a provider reports. A token has at least about one byte.
LEAST, MOST = 0.05, 1.5
# The least number of votes for the ratio of projects without their own. Missing votes are for the default, so that one
# project alone never decides.
MIN_VOTES = 3


class LearnedRatios:
    """Reads the usage of recent jobs, in each API process, and updates the ratios of estimates."""

    def __init__(
        self, registry: Registry, store: UsageStore, estimates: TokenEstimates, metrics: Metrics | None = None
    ) -> None:
        self._registry = registry
        self._store = store
        self._estimates = estimates
        self._metrics = metrics

    async def run(self) -> None:
        """Read it until cancelled."""
        await run_periodically(
            self.read, "reading the usage of prompts", interval_s=INTERVAL_S, jitter=0.2, immediately=True
        )

    async def read(self) -> None:
        """Read it once."""
        models = sorted(self._registry.models)
        usage = await self._store.recent(models)
        # The last jobs of a model may all be those of one busy project.
        for key, prompts in (await self._store.of_projects(models, self._estimates.projects)).items():
            if len(prompts) >= len(usage.get(key, ())):
                usage[key] = prompts
        ratios = {key: ratio for key, prompts in usage.items() if (ratio := tokens_per_byte(prompts)) is not None}
        votes: dict[str, list[float]] = {model: [] for model in models}
        for (model, _), ratio in ratios.items():
            votes[model].append(ratio)
        self._estimates.use({model: shared_ratio(found) for model, found in votes.items()}, ratios)
        if self._metrics is not None:
            for model, found in votes.items():
                shown = median(found) if found else DEFAULT_TOKENS_PER_BYTE
                self._metrics.tokens_per_byte.labels(self._metrics.model_label(model)).set(shown)


def shared_ratio(ratios: Sequence[float]) -> float:
    """The ratio of projects without their own, given those of the other projects."""
    return median([*ratios, *[DEFAULT_TOKENS_PER_BYTE] * (MIN_VOTES - len(ratios))])


def tokens_per_byte(prompts: Sequence[tuple[int, int]]) -> float | None:
    """The tokens that a byte has at most in 95 of 100 prompts, of which the bytes and tokens are given.

    Only the larger half counts, because in short prompts the chat template has a large share. None: too few prompts.
    """
    if len(prompts) < MIN_JOBS:
        return None
    median = sorted(size for size, _ in prompts)[len(prompts) // 2]
    ratios = sorted(tokens / size for size, tokens in prompts if size >= median)
    return min(MOST, max(LEAST, ratios[math.ceil(QUANTILE * len(ratios)) - 1]))
