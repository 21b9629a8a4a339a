"""Measurements: throughput, and the time until a stopped worker's streams continue."""

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

# Time to reconnect after an outage: until then it counts as ongoing, and the server gets no new fault.
BACK_S = 1.0

_COMPLETION_TOKENS = text(
    "SELECT coalesce(sum((usage->>'completion_tokens')::bigint), 0) FROM jobs"
    " WHERE finished_at BETWEEN :began AND :ended"
)


async def throughput(cluster: Cluster, seconds: float) -> float:
    """Measure output tokens per second, over the jobs that end in the next `seconds`."""
    began = await _now(cluster)
    await asyncio.sleep(seconds)
    ended = await _now(cluster)
    async with cluster.observer.connect() as connection:
        tokens = (await connection.execute(_COMPLETION_TOKENS, {"began": began, "ended": ended})).scalar_one()
    return float(tokens) / (ended - began).total_seconds()


async def _now(cluster: Cluster) -> datetime:
    async with cluster.observer.connect() as connection:
        now: datetime = (await connection.execute(text("SELECT clock_timestamp()"))).scalar_one()
    return now


@dataclass(frozen=True, slots=True, order=True)
class Rescue:
    """A stream whose worker was stopped: seconds until the next token, from another worker."""

    seconds: float
    job_id: str
    # When the worker was stopped, in monotonic seconds.
    at: float


def rescues(deaths: Iterable[Death], readers: Sequence[Reader]) -> list[Rescue]:
    """Return the streams of stopped workers, fastest rescue first."""
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
            if at >= death.at and not _ran_on(worker, death):
                return None
            rescued = at >= death.at
            worker = event.data["worker"]
        elif event.event == "job.delta" and rescued and not _ran_on(worker, death):
            return at - death.at
    return None


def _ran_on(worker: str, death: Death) -> bool:
    """Return whether the worker id (MODEL-PID-RANDOM@HOST) is that of the stopped process."""
    return f"-{death.pid}-" in worker


def undisturbed(found: Iterable[Rescue], happened: Iterable[Happened]) -> list[Rescue]:
    """Return the rescues during which Redis and PostgreSQL had no fault."""
    outages = [item for item in happened if not item.name.startswith(("api-", "worker-"))]
    return [
        rescue
        for rescue in found
        if not any(item.began < rescue.at + rescue.seconds and rescue.at < item.ended + BACK_S for item in outages)
    ]


def percentile(rescues: Sequence[Rescue], share: float) -> float:
    """Return the nearest-rank percentile of the seconds."""
    return rescues[max(0, math.ceil(share * len(rescues)) - 1)].seconds
