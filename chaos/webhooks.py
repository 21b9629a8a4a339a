"""A receiver of webhooks: it verifies each delivery, breaks some off, and records when it got which event."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx
import orjson
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from standardwebhooks import Webhook, WebhookVerificationError

# The share of requests whose connections are broken off before an answer.
BROKEN_OFF = 0.02
POLL_S = 0.2
_PENDING = text("SELECT count(*) FROM webhook_deliveries WHERE state = 'pending'")


@dataclass(slots=True)
class Receiver:
    """What has arrived: for each `webhook-id`, when first, and how often; and the event's type and object."""

    secret: str = ""
    port: int = 0
    first: dict[str, float] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)
    events: dict[str, tuple[str, str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    async def subscribe(self, client: httpx.AsyncClient) -> None:
        """Create the endpoint."""
        body = {"url": f"http://127.0.0.1:{self.port}/", "events": ["job.*"]}
        response = await client.post("/v1/webhooks/endpoints", json=body)
        response.raise_for_status()
        self.secret = response.json()["secret"]

    async def serve(self, rng: random.Random, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:]
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head)}
                body = await reader.readexactly(int(headers["content-length"]))
                self._note(headers, body)
                if rng.random() < BROKEN_OFF:
                    break
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
                await writer.drain()
        writer.close()

    def _note(self, headers: Mapping[str, str], body: bytes) -> None:
        identifier = headers.get("webhook-id", "")
        try:
            Webhook(self.secret).verify(body, dict(headers))
        except WebhookVerificationError as error:
            self.problems.append(f"{identifier}: {error}")
            return
        event = orjson.loads(body)
        about = event["type"], event["data"]["id"]
        if event["id"] != identifier or self.events.setdefault(identifier, about) != about:
            self.problems.append(f"{identifier} is the id of {about}, and of another event")
        self.times[identifier] += 1
        self.first.setdefault(identifier, time.time())

    def missing(self, jobs: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """The ended jobs whose event has not arrived."""
        arrived = set(self.events.values())
        return [job_id for job_id, job in jobs.items() if (f"job.{job['status']}", job_id) not in arrived]

    @property
    def repeated(self) -> int:
        """The number of deliveries that had arrived before."""
        return sum(self.times.values()) - len(self.times)

    def lags(self, jobs: Mapping[str, Mapping[str, Any]]) -> list[float]:
        """The seconds from the end of each job to its event, in order."""
        found = []
        for identifier, (_, job_id) in self.events.items():
            finished_at = jobs.get(job_id, {}).get("finished_at")
            if finished_at is not None:
                found.append(self.first[identifier] - datetime.fromisoformat(finished_at).timestamp())
        return sorted(found)


@contextlib.asynccontextmanager
async def receiving(rng: random.Random) -> AsyncIterator[Receiver]:
    """Run a receiver."""
    receiver = Receiver()
    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(receiver.serve(rng, reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def wait_until_delivered(database: AsyncEngine, within_s: float) -> None:
    """Wait until no delivery is pending, at most so long."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        with contextlib.suppress(SQLAlchemyError, OSError):
            async with database.connect() as connection:
                if not (await connection.execute(_PENDING)).scalar_one():
                    return
        await asyncio.sleep(POLL_S)
