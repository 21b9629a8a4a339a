"""A receiver of webhooks in a thread of its own: it records when each event has arrived first, or never answers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import orjson


@dataclass(slots=True)
class Receiver:
    """`arrived`: when the event of each object arrived first, in Unix seconds. `requests`: with repetitions."""

    port: int = 0
    answers: bool = True
    arrived: dict[str, float] = field(default_factory=dict)
    requests: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
        # Cancelled: asyncio would report it as an error of the connection.
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                at = time.time()
                length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                event = orjson.loads(await reader.readexactly(int(length)))
                self.requests += 1
                if not self.answers:
                    await asyncio.Event().wait()
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
                self.arrived.setdefault(event["data"]["id"], at)
        writer.close()


@contextlib.contextmanager
def receiver(*, answers: bool = True) -> Iterator[Receiver]:
    """Run a receiver. `answers`: otherwise it accepts requests, and never answers."""
    found = Receiver(answers=answers)
    started = threading.Event()
    loop = asyncio.new_event_loop()

    def serve() -> None:
        server = loop.run_until_complete(asyncio.start_server(found.serve, "127.0.0.1", 0))
        found.port = server.sockets[0].getsockname()[1]
        started.set()
        loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    thread = threading.Thread(target=serve, name="webhook-receiver")
    thread.start()
    started.wait()
    try:
        yield found
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
