"""Runs the load faster than real time on an API process, PostgreSQL, Redis and workers with the simulated engine.

All times are divided by `speed`: arrivals, tokens, engine starts, drains, scrapes and the autoscaler's intervals. The
time that Headrace and its servers themselves take is not divided, so it counts `speed` times as much.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from benchmarks.autoscale.course import Course
from benchmarks.autoscale.keda import Autoscaler
from benchmarks.autoscale.load import Arrival, Service
from benchmarks.autoscale.model import LOOK_S, SCRAPE_S
from benchmarks.systems.headrace import Headrace, headrace
from launcher.linux import die_with_parent
from launcher.settings import REPOSITORY
from shared.domain.job import RUNNING, JobStatus
from shared.postgres.engine import connect
from shared.postgres.tables import JobRow, WorkerRow

MODEL = "sim"
START_S = 60.0
CONNECTIONS = 32


@dataclass(slots=True, eq=False)
class _Pod:
    """A worker; `pid` is None until its process is started."""

    created: float
    pid: int | None = None
    ended: float | None = None
    draining: bool = False


@dataclass(slots=True)
class _Workers:
    """Worker processes, forked by the zygote."""

    process: asyncio.subprocess.Process
    exited: dict[int, float] = field(default_factory=dict)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    any_exited: asyncio.Event = field(default_factory=asyncio.Event)
    _started: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    _count: int = 0

    async def listen(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            word, pid = line.split()
            match word:
                case b"ready":
                    self.ready.set()
                case b"exited":
                    self.exited[int(pid)] = time.monotonic()
                    self.any_exited.set()
                case _:
                    self._started.put_nowait(int(pid))

    async def start(self) -> int:
        self._count += 1
        self._send(f"start worker-{self._count}")
        return await self._started.get()

    def terminate(self, pid: int) -> None:
        self._send(f"term {pid}")

    def _send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())


@contextmanager
def stack(folder: Path, service: Service, speed: float) -> Iterator[Headrace]:
    """Start PostgreSQL, Valkey and one API process. `play` starts the workers."""
    model = {
        "name": MODEL,
        "engine": "simulated",
        "slots": service.slots,
        "options": {
            "ttft_ms": 1000 * service.first_token_s / speed,
            "itl_ms": 1000 * service.token_s / speed,
            "max_model_len": 4096,
        },
    }
    settings: dict[str, Any] = {
        "HEADRACE_DRAIN_S": service.drain_s / speed,
        "HEADRACE_HEARTBEAT_S": 0.5,
        "HEADRACE_LOG_LEVEL": "WARNING",
    }
    with headrace(folder, [model], (), **settings) as system:
        yield system


async def play(
    system: Headrace,
    folder: Path,
    arrivals: Sequence[Arrival],
    service: Service,
    scaler: Autoscaler,
    until: float,
    speed: float,
) -> Course:
    """Run a part of a day. The returned times are in simulated time."""
    database = connect(system.database_url, pool_size=2)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.autoscale.zygote",
        MODEL,
        str(folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        env=system.environment(),
        preexec_fn=die_with_parent(),
    )
    workers = _Workers(process)
    listening = asyncio.create_task(workers.listen())
    try:
        ready = asyncio.create_task(workers.ready.wait())
        await asyncio.wait((ready, listening), return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            raise RuntimeError("the workers' zygote exited")
        run = _Run(system, database, workers, service, scaler, speed)
        await run.measure_start()
        return await run.play(arrivals, until)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
        await listening
        await database.dispose()


class _Run:
    def __init__(
        self,
        system: Headrace,
        database: AsyncEngine,
        workers: _Workers,
        service: Service,
        scaler: Autoscaler,
        speed: float,
    ) -> None:
        self._system = system
        self._database = database
        self._workers = workers
        self._service = service
        self._scaler = scaler
        self._speed = speed
        self._pods: list[_Pod] = []
        self._starting: set[asyncio.Task[None]] = set()
        self._began = 0.0
        # Real seconds from a worker's fork until it is ready, deducted from the simulated engine start.
        self._start_s = 0.0
        self.course = Course(LOOK_S)

    @property
    def now(self) -> float:
        """The simulated time, in seconds."""
        return (time.monotonic() - self._began) * self._speed

    async def measure_start(self) -> None:
        """Start and stop one worker, to measure how much of an engine start the process itself takes."""
        began = time.monotonic()
        pid = await self._workers.start()
        async with asyncio.timeout(START_S):
            while True:
                *_, ready = await self._counts()
                if ready:
                    break
                await asyncio.sleep(0.02)
            self._start_s = time.monotonic() - began
            self._workers.terminate(pid)
            await self._workers.any_exited.wait()
        if self._start_s > self._service.cold_start_s / self._speed:
            print(
                f"starting a worker process takes {self._start_s:.1f} s, longer than an engine start of"
                f" {self._service.cold_start_s:g} s at speed {self._speed:g}: choose a lower --speed",
                file=sys.stderr,
            )

    async def play(self, arrivals: Sequence[Arrival], until: float) -> Course:
        self._began = time.monotonic()
        submitting = asyncio.create_task(self._submit_all(arrivals))
        value, next_scrape, next_sample = 0.0, 0.0, 0.0
        waiting = running = ready = 0
        while (now := self.now) < until:
            if now >= next_scrape or now >= next_sample:
                waiting, running, ready = await self._counts()
            if now >= next_scrape:
                next_scrape += SCRAPE_S
                value = (waiting + running) / self._service.slots
            self._reap()
            held = [pod for pod in self._pods if pod.ended is None and not pod.draining]
            self._scale(held, self._scaler.replicas(now, value, len(held)))
            if now >= next_sample:
                next_sample += LOOK_S
                alive = sum(pod.ended is None for pod in self._pods)
                self.course.sample(waiting, running, alive, ready)
            await asyncio.sleep(1.0 / self._speed)
        await submitting
        self._reap()
        for pod in self._pods:
            self.course.pod_seconds += min(until, pod.ended if pod.ended is not None else until) - pod.created
        await self._waits(self.now)
        for task in self._starting:
            task.cancel()
        return self.course

    async def _submit_all(self, arrivals: Sequence[Arrival]) -> None:
        # One connection per request: a POST on a connection that the server is closing fails and is not retried.
        connections = aiohttp.TCPConnector(limit=CONNECTIONS, force_close=True)
        async with (
            aiohttp.ClientSession(
                f"http://127.0.0.1:{self._system.port}", headers=self._system.headers, connector=connections
            ) as session,
            asyncio.TaskGroup() as group,
        ):
            for number, arrival in enumerate(arrivals):
                if (early := arrival.at - self.now) > 0:
                    await asyncio.sleep(early / self._speed)
                group.create_task(self._submit(session, number, arrival))

    async def _submit(self, session: aiohttp.ClientSession, number: int, arrival: Arrival) -> None:
        body = {"model": MODEL, "prompt": f"job {number}", "max_tokens": arrival.tokens}
        async with session.post("/v1/jobs", json=body) as response:
            response.raise_for_status()

    def _scale(self, held: list[_Pod], wanted: int) -> None:
        for _ in range(wanted - len(held)):
            pod = _Pod(self.now)
            self._pods.append(pod)
            task = asyncio.create_task(self._start(pod))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)
        # Like a ReplicaSet, remove pods that are not ready first, then the newest.
        spare = sorted(held, key=lambda pod: (pod.pid is not None, -pod.created))
        for pod in spare[: max(0, len(held) - wanted)]:
            pod.draining = True
            if pod.pid is None:
                pod.ended = self.now
            else:
                self._workers.terminate(pod.pid)

    async def _start(self, pod: _Pod) -> None:
        await asyncio.sleep(max(0.0, self._service.cold_start_s / self._speed - self._start_s))
        if not pod.draining:
            pod.pid = await self._workers.start()
            if pod.draining:
                self._workers.terminate(pod.pid)

    def _reap(self) -> None:
        for pod in self._pods:
            if pod.pid is not None and pod.ended is None and pod.pid in self._workers.exited:
                pod.ended = (self._workers.exited[pod.pid] - self._began) * self._speed

    async def _counts(self) -> tuple[int, int, int]:
        """Return the numbers of waiting jobs, running jobs and ready workers, as the metrics report them."""
        jobs = (
            select(JobRow.status, func.count().label("jobs"))
            .where(JobRow.status.in_([JobStatus.QUEUED.value, *(status.value for status in RUNNING)]))
            .group_by(JobRow.status)
        )
        serving = select(func.count()).where(
            WorkerRow.lease_expires_at > func.clock_timestamp(), WorkerRow.state == "ready"
        )
        async with self._database.connect() as connection:
            counts = {row.status: int(row.jobs) for row in await connection.execute(jobs)}
            ready = (await connection.execute(serving)).scalar_one()
        waiting = counts.pop(JobStatus.QUEUED.value, 0)
        return waiting, sum(counts.values()), ready

    async def _waits(self, now: float) -> None:
        """Record how long each job waited, or has waited so far, from the database."""
        waited = func.coalesce(JobRow.started_at, func.clock_timestamp()) - JobRow.created_at
        statement = select(
            func.extract("epoch", waited),
            func.extract("epoch", func.clock_timestamp() - JobRow.created_at),
            JobRow.attempts,
        )
        async with self._database.connect() as connection:
            for wait, age, attempts in await connection.execute(statement):
                self.course.waits.append(float(wait) * self._speed)
                self.course.submitted.append(max(0.0, now - float(age) * self._speed))
                self.course.handed_back += sum(attempt["outcome"] == "handed_back" for attempt in attempts)
