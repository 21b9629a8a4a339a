"""The load: a fixed number of outstanding jobs over all API processes; some have readers, a few are cancelled."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from chaos.cluster import SUBMIT_TIMEOUT, Cluster
from chaos.readers import Reader
from chaos.sse import read_events
from chaos.work import Work

SUBMITTERS = 12
POLL_S = 0.2
# After how many events at most a stream is left.
LEFT_AFTER = 60
RETRY_S = 0.2
_OUTSTANDING = text("SELECT count(*) FROM jobs WHERE status IN ('queued', 'in_progress', 'cancelling')")


@dataclass(slots=True)
class Accepted:
    """A job that was accepted with 202."""

    job_id: str
    work: Work
    reader: Reader | None = None
    cancel_requested: bool = False


class Load:
    """Submits, reads and cancels jobs. `problems` are responses that no fault explains."""

    def __init__(self, cluster: Cluster, works: list[Work], rng: random.Random) -> None:
        self._cluster = cluster
        self._works = works
        self._rng = rng
        self._capacity = 0
        self._in_flight = 0
        self._number = 0
        self._stopped = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.accepted: list[Accepted] = []
        self.refused = 0
        self.retried = 0
        self.disconnected = 0
        self.problems: list[str] = []

    @property
    def left(self) -> int:
        """The number of jobs still to submit."""
        return 0 if self._stopped else (self._cluster.plan.jobs or 10**9) - self._number

    def stop(self) -> None:
        """Stop submitting."""
        self._stopped = True

    async def run(self) -> None:
        """Submit until no jobs are left or `stop` is called."""
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._watch())
            submitters = [group.create_task(self._submit_all()) for _ in range(SUBMITTERS)]
            await asyncio.gather(*submitters)
            watch.cancel()

    async def readers_ended(self) -> None:
        """Wait until every reader has received a terminal event and every cancel was accepted."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def drop_readers(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _watch(self) -> None:
        """Update how many jobs may be submitted, from the number outstanding."""
        while True:
            try:
                async with self._cluster.observer.connect() as connection:
                    outstanding = (await connection.execute(_OUTSTANDING)).scalar_one()
                self._capacity = self._cluster.plan.outstanding - outstanding - self._in_flight
            except (SQLAlchemyError, OSError):
                pass  # a planned outage of PostgreSQL
            await asyncio.sleep(POLL_S)

    async def _submit_all(self) -> None:
        while self.left > 0:
            if self._capacity <= 0:
                await asyncio.sleep(POLL_S / 4)
                continue
            self._capacity -= 1
            self._number += 1
            self._in_flight += 1
            work = self._rng.choice(self._works)
            number, key = self._number, None
            if self._rng.random() < self._cluster.plan.retries:
                key = f"{self._cluster.plan.seed}-{number}"
            job_id = await self._submit(work, number, key)
            self._in_flight -= 1
            if job_id is not None:
                self._accept(Accepted(job_id, work))
                if key is not None:
                    self._spawn(self._repeat(work, number, key, job_id))

    async def _repeat(self, work: Work, number: int, key: str, job_id: str) -> None:
        """Submit a request again that was accepted: its job is returned."""
        repeated = await self._submit(work, number, key)
        if repeated is not None:
            self.retried += 1
            if repeated != job_id:
                self.problems.append(f"a retry of {job_id} with its idempotency key returned {repeated}")

    async def _submit(self, work: Work, number: int, key: str | None) -> str | None:
        """Retry a submit until it is accepted. Returns the job id, or None if the load was stopped first."""
        clients = self._cluster.clients
        headers = {} if key is None else {"Idempotency-Key": key}
        api = self._rng.randrange(len(clients))
        while not self._stopped:
            try:
                response = await clients[api].post(
                    "/v1/jobs", json=work.body(number), headers=headers, timeout=SUBMIT_TIMEOUT
                )
            except (httpx.HTTPError, OSError):
                pass
            else:
                if response.status_code == 202 or (key is not None and response.status_code == 200):
                    return str(response.json()["id"])
                if response.status_code != 503:
                    self.problems.append(f"submit returned {response.status_code} {response.text}")
            self.refused += 1
            api = (api + 1) % len(clients)
            await asyncio.sleep(RETRY_S)
        return None

    def _accept(self, item: Accepted) -> None:
        self.accepted.append(item)
        plan = self._cluster.plan
        if self._rng.random() < plan.readers:
            item.reader = Reader(item.job_id, self._cluster.clients, self._rng)
            self._spawn(item.reader.run())
        if self._rng.random() < plan.disconnects:
            self._spawn(self._leave(item.job_id, self._rng.randint(1, LEFT_AFTER)))
        if self._rng.random() < plan.cancels:
            self._spawn(self._cancel(item, self._rng.uniform(0, plan.tokens[1] * plan.itl_ms / 1000)))

    async def _leave(self, job_id: str, after: int) -> None:
        """Read the first events of a job's stream, and disconnect."""
        client = self._rng.choice(self._cluster.clients)
        try:
            url = f"/v1/jobs/{job_id}/stream"
            async with client.stream("GET", url) as response, aclosing(read_events(response)) as events:
                async for _ in events:
                    after -= 1
                    if not after:
                        self.disconnected += 1
                        return
        except (httpx.HTTPError, OSError, ValueError):
            pass  # a fault was faster

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cancel(self, item: Accepted, after_s: float) -> None:
        """Retry a job's cancel until it is accepted."""
        await asyncio.sleep(after_s)
        item.cancel_requested = True
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
                    self.problems.append(f"cancel of {item.job_id} returned {response.status_code} {response.text}")
                    return
            api = (api + 1) % len(clients)
            await asyncio.sleep(RETRY_S)
        self.problems.append(f"cancel of {item.job_id} was not accepted within {self._cluster.plan.quiet_s:.0f} s")
