"""1,000 dropped connections to two API processes, which are killed repeatedly: no event is lost or repeated.

Each reader reads a few events, drops its connection, and resumes from its cursor on a random API process. Its events
equal those of an uninterrupted reader byte for byte. The random choices are seeded; the timing is not.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import httpx
import pytest

from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.test_jobs import submit
from tests.support.database import drop_database
from tests.support.stack import Stack
from tests.support.waiting import eventually

SEED = 20260
READERS = 50
DISCONNECTS = 20
TOKENS = 700
KILLS = 3
WITHIN_S = 90.0

# An unparsed frame: id, event, data.
Frame = tuple[bytes, bytes, bytes]


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An API process, and a worker slow enough that most of a resumed stream is live."""
    models: list[dict[str, object]] = [
        {"name": "sim", "engine": "simulated", "slots": READERS, "options": {"ttft_ms": 5, "itl_ms": 30}}
    ]
    stack = make_stack(servers, tmp_path_factory, "resume", models, HEADRACE_RESYNC_S=1)
    try:
        stack.start_api()
        stack.start_worker("sim")
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_resume")


async def frames(lines: AsyncIterator[bytes]) -> AsyncIterator[Frame]:
    """The frames that carry an id, unparsed."""
    frame: dict[bytes, bytes] = {}
    async for line in lines:
        if line:
            name, _, value = line.partition(b": ")
            frame[name] = value
        else:
            if b"id" in frame:
                yield frame[b"id"], frame[b"event"], frame[b"data"]
            frame = {}


async def raw_lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """The lines of a body. An incomplete last line is dropped."""
    rest = b""
    async for chunk in response.aiter_raw():
        *lines_read, rest = (rest + chunk).split(b"\n")
        for line in lines_read:
            yield line


def is_last(frame: Frame) -> bool:
    return frame[1] not in (b"job.started", b"job.delta", b"job.restarted")


@dataclass
class Reader:
    """A client whose connections are dropped."""

    job_id: str
    draw: random.Random
    seen: list[Frame] = field(default_factory=list)
    dropped: int = 0

    async def read(self, clients: list[httpx.AsyncClient]) -> None:
        """Read to the end across `DISCONNECTS` dropped connections and any that break otherwise."""
        while not (self.seen and is_last(self.seen[-1])):
            drops = self.dropped < DISCONNECTS
            limit = self.draw.randint(1, TOKENS // DISCONNECTS) if drops else None
            try:
                await self._connect(self.draw.choice(clients), limit)
            except httpx.TransportError:
                await asyncio.sleep(0.05)  # this API process was killed; retry
            else:
                self.dropped += drops

    async def _connect(self, client: httpx.AsyncClient, limit: int | None) -> None:
        """Resume and read `limit` events, or all if None. With a limit, stops before the last event of the stream."""
        headers, params = {}, {}
        if self.seen:
            cursor = self.seen[-1][0].decode()
            if self.draw.random() < 0.5:
                headers["Last-Event-ID"] = cursor
            else:
                params["starting_after"] = cursor
        async with client.stream("GET", f"/v1/jobs/{self.job_id}/stream", headers=headers, params=params) as response:
            assert response.status_code == 200, await response.aread()
            count = 0
            async for frame in frames(raw_lines(response)):
                if limit is not None and is_last(frame):
                    return
                self.seen.append(frame)
                count += 1
                if count == limit:
                    return


async def test_a_thousand_dropped_connections(stack: Stack) -> None:
    print(f"seed {SEED}")
    draw = random.Random(SEED)
    with stack.second_api() as second:
        async with stack.client() as one, stack.client(base_url=second) as other:
            jobs = [await submit(one, prompt=f"job {number}", max_tokens=TOKENS) for number in range(READERS)]
            readers = [Reader(job["id"], random.Random(draw.random())) for job in jobs]
            reading = asyncio.gather(*(reader.read([one, other]) for reader in readers))
            try:
                for number in range(KILLS):
                    await disconnects(readers, (number + 1) * READERS * DISCONNECTS // (KILLS + 1))
                    await asyncio.to_thread(stack.replace_api, second if number % 2 else stack.url)
                await asyncio.wait_for(reading, WITHIN_S)
            finally:
                reading.cancel()
            for reader in readers:
                async with one.stream("GET", f"/v1/jobs/{reader.job_id}/stream") as response:
                    lines_read = [frame async for frame in frames(raw_lines(response))]
                assert reader.seen == lines_read
                assert [int(frame[0]) for frame in reader.seen] == list(range(1, len(lines_read) + 1))
    assert sum(reader.dropped for reader in readers) == READERS * DISCONNECTS


async def disconnects(readers: list[Reader], count: int) -> None:
    async def reached() -> bool:
        return sum(reader.dropped for reader in readers) >= count

    await eventually(reached, f"{count} dropped connections", within_s=WITHIN_S)
