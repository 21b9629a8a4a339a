"""Cancels running jobs, and times each cancel from the request to `job.cancelled`."""

from __future__ import annotations

import asyncio
from array import array
from time import perf_counter

import orjson

from benchmarks.load.plan import ID, Plan
from benchmarks.load.requests import Requests, request

# Job n is cancelled after 1 + n % DELTAS events, so that some jobs are running at any time.
DELTAS = 40
STREAM = f"/v1/jobs/{ID}/stream"
CANCEL = f"/v1/jobs/{ID}/cancel"


class Cancels:
    """Submits jobs at a fixed rate, follows each stream, and cancels the job while it runs."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._requests = Requests(plan)
        self.seconds: array[float] = array("d")
        self.ended_before = 0
        self.failures: list[str] = []

    async def run(self) -> None:
        assert self._plan.rate is not None
        assert self._plan.requests is not None
        rate = self._plan.rate

        async def one(number: int) -> None:
            await asyncio.sleep(number / rate)
            try:
                await self._one(number)
            except (OSError, EOFError, ValueError) as error:
                self.failures.append(repr(error))

        await asyncio.gather(*(one(number) for number in range(self._plan.requests)))

    async def _one(self, number: int) -> None:
        job_id = orjson.loads(await self._call(self._requests.next()))["id"]
        reader, writer = await asyncio.open_connection("127.0.0.1", self._plan.port)
        writer.write(request(self._plan.port, "GET", STREAM.replace(ID, job_id), self._plan.headers))
        requested: asyncio.Task[float] | None = None
        deltas = 0
        kind = b""
        try:
            while not kind.startswith((b"completed", b"incomplete", b"failed", b"cancelled", b"expired")):
                line = await reader.readline()
                if not line:
                    raise EOFError("the stream broke")
                if not line.startswith(b"event: job."):
                    continue
                kind = line.removeprefix(b"event: job.").strip()
                deltas += kind == b"delta"
                if deltas == 1 + number % DELTAS and requested is None:
                    requested = asyncio.create_task(self._cancel(job_id))
            ended = perf_counter()
        finally:
            writer.close()
        if requested is None or kind != b"cancelled":
            self.ended_before += 1
        else:
            self.seconds.append(ended - await requested)

    async def _cancel(self, job_id: str) -> float:
        """Request the cancel. Returns the time of the request."""
        requested = perf_counter()
        await self._call(request(self._plan.port, "POST", CANCEL.replace(ID, job_id), self._plan.headers))
        return requested

    async def _call(self, request_bytes: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._plan.port)
        try:
            writer.write(request_bytes)
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head[9:12])
            length = int(head.lower().partition(b"content-length:")[2].split(None, 1)[0])
            body = await reader.readexactly(length)
        finally:
            writer.close()
        if status >= 400:
            raise ValueError(f"{status} {body[:300].decode(errors='replace')}")
        return body
