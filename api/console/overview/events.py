"""What happened, for the list and for the chart: rescues, and what became of workers and queues."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from api.admin.fleet.store import WorkerInfo
from api.console.data.overview import Live, Rescue
from api.console.filters import duration, plural
from shared.domain.job import AttemptOutcome

SHOWN = 12
# Losses of one worker's jobs that were noticed within this time are one event.
_TOGETHER_S = 10.0


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at a moment. `kind` is that of a badge; `link` leads to what it is about."""

    at: datetime
    label: str
    kind: str
    text: str
    link: str | None = None
    mark: bool = False  # shown on the chart


def events(live: Live, since: datetime, project_id: int | None) -> list[Event]:
    """The last events after a time, newest first. `project_id`: of rescues, only those of its jobs."""
    visible = [rescue for rescue in live.rescues if project_id is None or rescue.project_id == project_id]
    rescued = {rescue.worker for rescue in visible}
    found = [*_rescues(visible), *_workers(live.workers, rescued, with_reasons=project_id is None), *_pauses(live)]
    recent = [event for event in found if event.at >= since]
    return sorted(recent, key=lambda event: event.at, reverse=True)[:SHOWN]


def short_worker(worker: str) -> str:
    """A worker's id as operators say it."""
    return worker if len(worker) <= 32 else f"{worker[:31]}…"


def _rescues(rescues: Sequence[Rescue]) -> Iterable[Event]:
    groups: dict[tuple[str, str, int], list[Rescue]] = defaultdict(list)
    for rescue in rescues:
        groups[rescue.worker, rescue.outcome, int(rescue.lost_at.timestamp() / _TOGETHER_S)].append(rescue)
    for (worker, outcome, _), together in groups.items():
        at = min(rescue.lost_at for rescue in together)
        silent = outcome == AttemptOutcome.WORKER_LOST
        lost = "went silent" if silent else "lost its engine"
        continued = [rescue for rescue in together if rescue.continued_at is not None]
        text = f"{short_worker(worker)} {lost}; "
        if len(continued) == len(together):
            gaps = [
                (rescue.continued_at - rescue.lost_at).total_seconds() for rescue in together if rescue.continued_at
            ]
            text += f"{plural(len(together), 'job')} continued within {duration(max(gaps))}"
            if silent:  # for how long is known from the jobs' logs only: their pages show how long readers waited
                text += " after this was noticed"
        else:
            text += f"{len(continued)} of {plural(len(together), 'job')} continued so far"
        link = f"jobs/{together[0].job_id}" if len(together) == 1 else None
        yield Event(at, "rescue", "bad", text, link, mark=True)


def _workers(workers: Sequence[WorkerInfo], rescued: Collection[str], *, with_reasons: bool) -> Iterable[Event]:
    """What became of workers. The loss of a worker whose jobs were rescued is that rescue."""
    for worker in workers:
        name = f"{short_worker(worker.id)} of {worker.model}"
        if not worker.alive:
            if worker.id not in rescued:
                yield Event(worker.lease_expires_at, "worker", "plain", f"{name} stopped", mark=True)
            continue
        yield Event(worker.started_at, "worker", "good", f"{name} started")
        if worker.state != "ready" and worker.state_since is not None:
            yield Event(worker.state_since, "worker", "near", f"{name} is {worker.state}")
        if worker.breaker_since is not None:
            reason = f": {worker.breaker_reason}" if with_reasons and worker.breaker_reason else ""
            yield Event(worker.breaker_since, "upstream", "near", f"{name} lets no jobs through{reason}", mark=True)


def _pauses(live: Live) -> Iterable[Event]:
    paused = {queue.model: queue.paused_at for queue in live.queues if queue.paused_at is not None}
    for model, at in paused.items():
        yield Event(at, "queue", "near", f"the queue of {model} was paused", mark=True)
