"""The load: jobs over all API processes, so many at a time, readers on some of them, cancels on a few."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import httpx
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from chaos.cluster import SUBMIT_TIMEOUT, Cluster
from chaos.readers import Reader
from chaos.work import Work

SUBMITTERS = 12
LOOK_S = 0.2
RETRY_S = 0.2
_OUTSTANDING = text("SELECT count(*) FROM jobs WHERE status IN ('queued', 'in_progress', 'cancelling')")


@dataclass(slots=True)
class Accepted:
    """A job that was acknowledged with 202."""

    job_id: str
    work: Work
    reader: Reader | None = None
    cancel_asked: bool = False


class Load:
    """Submits, reads and cancels. `problems` are answers that no fault excuses."""

    def __init__(self, cluster: Cluster, works: list[Work], rng: random.Random) -> None:
        self._cluster = cluster
        self._works = works
        self._rng = rng
        self._room = 0
        self._in_flight = 0
        self._number = 0
        self._stopped = False
        self._others: set[asyncio.Task[None]] = set()
        self.accepted: list[Accepted] = []
        self.refused = 0
        self.problems: list[str] = []

    @property
    def left(self) -> int:
        """Jobs that are still to be submitted."""
        return 0 if self._stopped else (self._cluster.plan.jobs or 10**9) - self._number

    def stop(self) -> None:
        """Submit nothing more."""
        self._stopped = True

    async def run(self) -> None:
        """Submit until there is nothing left or `stop`."""
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._watch())
            submitters = [group.create_task(self._submit_all()) for _ in range(SUBMITTERS)]
            await asyncio.gather(*submitters)
            watch.cancel()

    async def readers_ended(self) -> None:
        """Wait until each reader has read its job's end, and each cancel was taken."""
        while self._others:
            await asyncio.wait(self._others)

    def waiting_readers(self) -> list[Reader]:
        return [item.reader for item in self.accepted if item.reader and item.reader.terminal is None]

    def drop_readers(self) -> None:
        for task in self._others:
            task.cancel()

    async def _watch(self) -> None:
        """Make room for as many jobs as have ended."""
        while True:
            try:
                async with self._cluster.observer.connect() as connection:
                    outstanding = (await connection.execute(_OUTSTANDING)).scalar_one()
                self._room = self._cluster.plan.outstanding - outstanding - self._in_flight
            except (SQLAlchemyError, OSError):
                pass  # PostgreSQL is away, as planned
            await asyncio.sleep(LOOK_S)

    async def _submit_all(self) -> None:
        while self.left > 0:
            if self._room <= 0:
                await asyncio.sleep(LOOK_S / 4)
                continue
            self._room -= 1
            self._number += 1
            self._in_flight += 1
            work = self._rng.choice(self._works)
            job_id = await self._submit(work, self._number)
            self._in_flight -= 1
            if job_id is not None:
                self._accept(Accepted(job_id, work))

    async def _submit(self, work: Work, number: int) -> str | None:
        """Submit until it is acknowledged; None where the load was stopped before."""
        clients = self._cluster.clients
        api = self._rng.randrange(len(clients))
        while not self._stopped:
            try:
                response = await clients[api].post("/v1/jobs", json=work.body(number), timeout=SUBMIT_TIMEOUT)
            except (httpx.HTTPError, OSError):
                pass
            else:
                if response.status_code == 202:
                    return str(response.json()["id"])
                if response.status_code != 503:
                    self.problems.append(f"a submit answered {response.status_code} {response.text}")
            self.refused += 1
            api = (api + 1) % len(clients)
            await asyncio.sleep(RETRY_S)
        return None

    def _accept(self, item: Accepted) -> None:
        self.accepted.append(item)
        plan = self._cluster.plan
        if self._rng.random() < plan.readers:
            item.reader = Reader(item.job_id, self._cluster.clients, self._rng)
            self._beside(item.reader.run())
        if self._rng.random() < plan.cancels:
            self._beside(self._cancel(item, self._rng.uniform(0, plan.tokens[1] * plan.itl_ms / 1000)))

    def _beside(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    async def _cancel(self, item: Accepted, after_s: float) -> None:
        """Ask for a job's cancel until that is answered."""
        await asyncio.sleep(after_s)
        item.cancel_asked = True
        clients = self._cluster.clients
        api = self._rng.randrange(len(clients))
        deadline = time.monotonic() + self._cluster.plan.quiet_s
        while time.monotonic() < deadline:
            try:
                response = await clients[api].post(f"/v1/jobs/{item.job_id}/cancel")
            except (httpx.HTTPError, OSError):
                pass
            else:
                if response.status_code == 200:
                    return
                if response.status_code != 503:
                    self.problems.append(f"a cancel answered {response.status_code} {response.text} {item.job_id}")
                    return
            api = (api + 1) % len(clients)
            await asyncio.sleep(RETRY_S)
        self.problems.append(f"a cancel was not taken until the end {item.job_id}")
