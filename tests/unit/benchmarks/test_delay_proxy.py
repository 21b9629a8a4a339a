"""The proxy that stands for the distance to Redis and PostgreSQL."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import perf_counter

from benchmarks.delay_proxy import MAX_BUFFERED, serve


async def test_both_directions_are_delayed_and_bytes_keep_their_order(tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()
        await writer.wait_closed()
        ended.set()

    ended = asyncio.Event()
    tcp = await asyncio.start_server(echo, "127.0.0.1", 0)
    unix = await asyncio.start_unix_server(echo, tmp_path / "socket")
    port = tcp.sockets[0].getsockname()[1]
    for listener in await serve(20, [str(port), str(tmp_path / "socket")]):
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.sockets[0].getsockname()[1])
        began = perf_counter()
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        assert perf_counter() - began >= 0.04
        sent = bytes(range(256)) * (MAX_BUFFERED // 128)  # more than it buffers
        writer.write(sent)
        assert await reader.readexactly(len(sent)) == sent
        writer.close()
        await writer.wait_closed()
        await asyncio.wait_for(ended.wait(), 20)  # the proxy has passed it on
        ended.clear()
        listener.close()
    tcp.close()
    unix.close()


async def test_a_server_that_refuses_closes_the_connection(tmp_path: Path) -> None:
    (listener,) = await serve(1, [str(tmp_path / "none")])
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.sockets[0].getsockname()[1])
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    listener.close()
