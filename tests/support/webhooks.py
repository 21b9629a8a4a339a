"""Receivers of webhooks with faults, and deliveries, for tests."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any

import httpx
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from api.webhooks.address_guard import AddressPolicy
from api.webhooks.http_client import Destination, HttpClient
from api.webhooks.outbox import DueDelivery
from api.webhooks.secrets import Secret, new_secret, to_stored
from shared.domain.ids import new_id
from shared.postgres.webhook_tables import WebhookDeliveryRow, WebhookEndpointRow, WebhookTryRow

# Receivers of tests are on this machine and have no certificate.
LOCAL = AddressPolicy(allow_private=[ip_network("127.0.0.0/8")], allow_http=True)
SECRET = new_secret()


@dataclass(frozen=True, slots=True)
class Received:
    """A request that a receiver has got."""

    path: str
    headers: dict[str, str]
    body: bytes


# Answers a request: writes to the connection, which is closed afterwards unless the result is true.
Answer = Callable[[Received, asyncio.StreamWriter], Awaitable[bool]]


def status(code: int, *headers: str, body: bytes = b"ok") -> Answer:
    """Answer with a status, and keep the connection."""

    async def answer(_request: Received, writer: asyncio.StreamWriter) -> bool:
        head = [f"HTTP/1.1 {code} Something", f"content-length: {len(body)}", *headers, "", ""]
        writer.write("\r\n".join(head).encode() + body)
        await writer.drain()
        return True

    return answer


async def reset(_request: Received, writer: asyncio.StreamWriter) -> bool:
    """Break the connection off."""
    writer.transport.abort()
    return False


async def hang(_request: Received, writer: asyncio.StreamWriter) -> bool:
    """Never answer."""
    await asyncio.Event().wait()
    return False


async def endless_body(_request: Received, writer: asyncio.StreamWriter) -> bool:
    """Answer 200, and send a body that does not end."""
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        await writer.drain()


async def unfinished_body(_request: Received, writer: asyncio.StreamWriter) -> bool:
    """Answer 200 with a part of a body."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nsome")
    await writer.drain()
    await asyncio.Event().wait()
    return False


async def nonsense(_request: Received, writer: asyncio.StreamWriter) -> bool:
    """Answer something that is not HTTP."""
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
    await writer.drain()
    return False


@dataclass(slots=True)
class Receiver:
    """An HTTP server that records what it gets."""

    port: int = 0
    answer: Answer = field(default_factory=lambda: status(200))
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    closed: int = 0
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def wait(self, count: int) -> list[Received]:
        """Wait until so many requests have arrived."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.requests) >= count)
        return self.requests

    async def wait_closed(self, count: int) -> None:
        """Wait until so many connections are closed."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.closed >= count)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {
                    name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                request = Received(head[0].split(" ")[1], headers, body)
                async with self._changed:
                    self.requests.append(request)
                    self._changed.notify_all()
                if not await self.answer(request, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()
            async with self._changed:
                self.closed += 1
                self._changed.notify_all()


@asynccontextmanager
async def receiving(
    answer: Answer | None = None, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Receiver]:
    """Run a receiver. By default, it answers 200."""
    receiver = Receiver()
    if answer is not None:
        receiver.answer = answer
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(receiver.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, host, 0, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def post(client: HttpClient, url: str) -> int:
    """Send a request to a URL that is not checked; return the status of the response."""
    answer = await client.post(Destination.of(httpx.URL(url)), {}, b"{}", timeout_s=10, answer_s=1)
    return answer.status


def delivery(url: str, **changes: Any) -> DueDelivery:
    """A leased delivery to a URL."""
    values: dict[str, Any] = {
        "id": 1,
        "event_id": "evt_1",
        "project_id": 1,
        "endpoint_id": "endpoint_1",
        "target": "endpoint_1",
        "url": url,
        "type": "job.completed",
        "object_id": "job_1",
        "data": None,
        "created_at": datetime.now(UTC),
        "tries": 1,
        "full": False,
        "secrets": (Secret(SECRET),),
        "age_s": 0.0,
        "attempt": 1,
        "trying_s": 0.0,
        **changes,
    }
    return DueDelivery(**values)


async def add_endpoint(database: AsyncEngine, project_id: int, url: str, *events: str, **columns: Any) -> str:
    """Insert an endpoint with the secret `SECRET`; return its id."""
    endpoint_id = new_id("endpoint_")
    values = {"events": list(events or ("*",)), "secrets": to_stored([Secret(SECRET)]), **columns}
    async with database.begin() as connection:
        await connection.execute(
            insert(WebhookEndpointRow).values(id=endpoint_id, project_id=project_id, url=url, **values)
        )
    return endpoint_id


async def add_delivery(database: AsyncEngine, project_id: int, number: int, **columns: Any) -> None:
    """Insert a delivery of the event `evt_<number>`, to an `endpoint_id` or a `url`."""
    values = {"event_id": f"evt_{number}", "type": "job.completed", "object_id": f"job_{number}", **columns}
    async with database.begin() as connection:
        await connection.execute(insert(WebhookDeliveryRow).values(project_id=project_id, **values))


async def deliveries(database: AsyncEngine) -> list[Any]:
    """All deliveries, in the order of their ids."""
    async with database.connect() as connection:
        columns = WebhookDeliveryRow.__table__.columns
        return list((await connection.execute(select(*columns).order_by(WebhookDeliveryRow.id))).all())


async def tries(database: AsyncEngine) -> list[Any]:
    """All tries, in their order."""
    async with database.connect() as connection:
        columns = WebhookTryRow.__table__.columns
        order = WebhookTryRow.delivery_id, WebhookTryRow.number
        return list((await connection.execute(select(*columns).order_by(*order))).all())


async def endpoint_row(database: AsyncEngine, endpoint_id: str) -> Any:
    """The row of an endpoint."""
    async with database.connect() as connection:
        columns = WebhookEndpointRow.__table__.columns
        return (await connection.execute(select(*columns).where(WebhookEndpointRow.id == endpoint_id))).one()
