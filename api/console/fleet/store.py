"""SQL of the page of models and workers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select

from api.console.data.job_counts import INTERACTIVE
from shared.postgres.job_conditions import IS_RUNNING
from shared.postgres.prepared import Prepared
from shared.postgres.store import Store
from shared.postgres.tables import JobRow


@dataclass(frozen=True, slots=True)
class RunningJobs:
    """The jobs that a worker runs: interactive ones, and those of batches."""

    interactive: int = 0
    batch: int = 0


class RunningJobsStore(Store):
    """Counts what runs: an index has no other jobs."""

    async def by_worker(self) -> Mapping[str, RunningJobs]:
        """The running jobs of each worker that has some."""
        counts: dict[str, dict[bool, int]] = defaultdict(dict)
        for row in await _RUNNING.run(self._engine, {}):
            counts[row.worker][row.interactive] = row.running
        return {worker: RunningJobs(found.get(True, 0), found.get(False, 0)) for worker, found in counts.items()}


def _running_statement() -> Any:
    interactive = INTERACTIVE.label("interactive")
    return (
        select(JobRow.worker, interactive, func.count().label("running"))
        .where(IS_RUNNING, JobRow.worker.is_not(None))
        .group_by(JobRow.worker, interactive)
    )


_RUNNING = Prepared(_running_statement())
