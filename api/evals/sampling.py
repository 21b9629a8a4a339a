"""Live sampling: a share of the answers in the request log is judged, as rubrics.yaml says."""

from __future__ import annotations

import hashlib
import logging
import time
from datetime import UTC, datetime, timedelta

from api.evals.rubrics import Rubric, RubricBook
from api.evals.samples import Candidate, Sampled, SampleStore
from shared.runtime.periodic import run_periodically
from shared.telemetry.definitions.labels import SamplingSkip
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

# How often the request log is read.
SAMPLE_S = 5.0
# Judgements of a run that may be open. A judge that is slower than the sample skips answers instead of lagging behind.
MAX_PENDING = 500
# How often what judges wrote about old answers is deleted.
FORGET_S = 3600.0


def is_selected(rubric: Rubric, job_id: str, model: str, project: str | None) -> bool:
    """Whether an answer is in the sample of a rubric. It depends on nothing but the arguments.

    With a higher rate, a sample has all answers of the one with the lower rate.
    """
    rate = rubric.sampling.rate_of(model, project)
    if rate <= 0:
        return False
    text = f"{rubric.sampling.seed} {rubric.name} {job_id}"
    drawn = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return drawn < rate * 2**64


class Sampler:
    """Selects answers to judge. Any number of processes may run it: each entry of the log is read by one."""

    def __init__(self, book: RubricBook, store: SampleStore, metrics: Metrics, *, retention_days: int) -> None:
        """`retention_days`: what judges write about an answer is deleted after so many days, as its body is."""
        self._retention = timedelta(days=retention_days)
        self._forgot_at = float("-inf")
        self._book = book
        self._store = store
        self._metrics = metrics

    async def run(self) -> None:
        """Sample every few seconds, until cancelled."""
        await run_periodically(
            self.step, "sampling of answers for judges", interval_s=SAMPLE_S, jitter=0.2, immediately=True
        )

    async def step(self) -> None:
        """Read what the log has had since the last step."""
        open_runs = []
        for rubric in self._book.rubrics.values():
            if rubric.sampling.is_on:
                run_id = await self._store.open_run(rubric)
                open_runs.append(run_id)
                while (sampled := await self._sample(rubric, run_id)) is not None and sampled.more:
                    pass
        await self._store.end_others(open_runs)
        if time.monotonic() - self._forgot_at >= FORGET_S:
            self._forgot_at = time.monotonic()
            await self._store.forget_reasons(datetime.now(UTC) - self._retention)

    async def _sample(self, rubric: Rubric, run_id: str) -> Sampled | None:
        def selects(one: Candidate) -> bool:
            return is_selected(rubric, one.job_id, one.model, one.project)

        room = max(0, MAX_PENDING - await self._store.pending(run_id))
        sampled = await self._store.sample(run_id, selects, room=room)
        if sampled is not None and (skipped := sampled.selected - sampled.added):
            reason = SamplingSkip.BACKLOG if sampled.paused is None else SamplingSkip(sampled.paused)
            self._metrics.sampling_skipped.labels(reason.value).inc(skipped)
            logger.warning("rubric=%s %d answers were not judged: %s", rubric.name, skipped, reason.value)
        return sampled
