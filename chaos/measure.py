"""What is measured beside what is promised: throughput, and how long a rescue takes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text

from chaos.cluster import Cluster, Death
from chaos.faults import Happened
from chaos.readers import Reader

# What was away is connected to again before it counts as left alone, and before the next fault meets it.
BACK_S = 1.0

_MADE = text(
    "SELECT coalesce(sum((usage->>'completion_tokens')::bigint), 0) FROM jobs"
    " WHERE finished_at BETWEEN :began AND :ended"
)


async def throughput(cluster: Cluster, seconds: float) -> float:
    """Output tokens per second of the jobs that end in the next so many seconds."""
    began = await _now(cluster)
    await asyncio.sleep(seconds)
    ended = await _now(cluster)
    async with cluster.observer.connect() as connection:
        tokens = (await connection.execute(_MADE, {"began": began, "ended": ended})).scalar_one()
    return float(tokens) / (ended - began).total_seconds()


async def _now(cluster: Cluster) -> datetime:
    async with cluster.observer.connect() as connection:
        now: datetime = (await connection.execute(text("SELECT clock_timestamp()"))).scalar_one()
    return now


@dataclass(frozen=True, slots=True, order=True)
class Rescue:
    """A stream whose worker was stopped: seconds until its next token, of another worker."""

    seconds: float
    job_id: str
    # When its worker was stopped, in monotonic seconds.
    at: float


def rescues(deaths: Iterable[Death], readers: Sequence[Reader]) -> list[Rescue]:
    """The streams of workers that were stopped, the fastest rescue first."""
    return sorted(
        Rescue(seconds, reader.job_id, death.at)
        for death in deaths
        for reader in readers
        if (seconds := _rescue(death, reader)) is not None
    )


def _rescue(death: Death, reader: Reader) -> float | None:
    worker, rescued = "", False
    for event, at in zip(reader.seen, reader.times, strict=True):
        if event.event == "job.started":
            if at >= death.at and not _runs(worker, death):
                return None
            rescued = at >= death.at
            worker = event.data["worker"]
        elif event.event == "job.delta" and rescued and not _runs(worker, death):
            return at - death.at
    return None


def _runs(worker: str, death: Death) -> bool:
    """A worker's id holds its process's: MODEL-PID-RANDOM@HOST."""
    return f"-{death.pid}-" in worker


def undisturbed(found: Iterable[Rescue], happened: Iterable[Happened]) -> list[Rescue]:
    """Rescues during which Redis and PostgreSQL were left alone."""
    outages = [item for item in happened if not item.name.startswith(("api-", "worker-"))]
    return [
        rescue
        for rescue in found
        if not any(item.began < rescue.at + rescue.seconds and rescue.at < item.ended + BACK_S for item in outages)
    ]


def percentile(rescues: Sequence[Rescue], share: float) -> float:
    """The nearest-rank percentile of the seconds."""
    return rescues[max(0, math.ceil(share * len(rescues)) - 1)].seconds
