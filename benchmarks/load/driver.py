"""Closed-loop and open-loop scheduling of requests over connections."""

from __future__ import annotations

import asyncio
from array import array
from collections import deque
from time import perf_counter

from benchmarks.load.connection import Connection, Exchange
from benchmarks.load.plan import Plan
from benchmarks.load.requests import Requests


class Driver:
    """Sends a plan's requests and records the exchanges."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._requests = Requests(plan)
        self._idle: deque[Connection] = deque()
        self._in_flight = 0
        self._sent = 0
        self._limit = plan.requests
        self._deadline: float | None = None
        self._finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gaps: array[float] = array("d")
        self.exchanges: list[Exchange] = []
        self.began = 0.0

    async def run(self) -> None:
        """Open the connections, warm up, and run the plan."""
        plan = self._plan
        connections = plan.concurrency if plan.rate is None else max(plan.concurrency, 1)
        for _ in range(connections):
            self._idle.append(await self._connect())
        if plan.warm_up:
            await self._closed(plan.warm_up, None, 0.0)
            self.exchanges.clear()
            del self.gaps[:]
        self.began = perf_counter()
        if plan.rate is None:
            await self._closed(plan.requests, plan.seconds, plan.spread_s)
        else:
            await self._open(plan.rate)
        for connection in self._idle:
            connection.close()

    async def _closed(self, requests: int | None, seconds: float | None, spread_s: float) -> None:
        self._sent, self._limit = 0, requests
        self._deadline = None if seconds is None else perf_counter() + seconds
        loop = asyncio.get_running_loop()
        self._finished = loop.create_future()
        connections = list(self._idle)
        self._idle.clear()
        self._in_flight += len(connections)  # each counts as in flight until its first request is sent
        for number, connection in enumerate(connections):
            loop.call_later(spread_s * number / len(connections), self._begin, connection)
        await self._finished

    def _begin(self, connection: Connection) -> None:
        self._in_flight -= 1
        self._next(connection)

    def _next(self, connection: Connection) -> None:
        """Send the next request on a connection that has finished its last one."""
        exhausted = self._limit is not None and self._sent >= self._limit
        if exhausted or (self._deadline is not None and perf_counter() >= self._deadline):
            self._idle.append(connection)
            if self._in_flight == 0 and not self._finished.done():
                self._finished.set_result(None)
            return
        self._sent += 1
        self._in_flight += 1
        connection.send(self._requests.next())

    async def _open(self, rate: float) -> None:
        """Send at fixed times. Latency counts from when a request was due, even if it was sent late."""
        plan = self._plan
        total = plan.requests if plan.requests is not None else int(rate * (plan.seconds or 0))
        self._limit = 0  # makes `_next` return connections to `_idle`
        began = perf_counter()
        for number in range(total):
            due = began + number / rate
            if (wait := due - perf_counter()) > 0:
                await asyncio.sleep(wait)
            while self._idle and not self._idle[0].open:  # closed by the server while idle
                self._idle.popleft()
            connection = self._idle.popleft() if self._idle else await self._connect()
            self._in_flight += 1
            connection.send(self._requests.next(), due)
        if self._in_flight:
            self._finished = asyncio.get_running_loop().create_future()
            await self._finished

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(self._done, self.gaps), "127.0.0.1", self._plan.port
        )
        return connection

    def _done(self, connection: Connection, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        self._in_flight -= 1
        if connection.open:
            self._next(connection)
        else:
            task = asyncio.get_running_loop().create_task(self._replace())
            task.add_done_callback(self._replaced)

    async def _replace(self) -> None:
        self._next(await self._connect())

    def _replaced(self, task: asyncio.Task[None]) -> None:
        if (error := task.exception()) is not None and not self._finished.done():
            self._finished.set_exception(error)
