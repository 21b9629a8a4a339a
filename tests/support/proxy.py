"""A reverse proxy that serves another server below a path.

It does what nginx does with `location /PREFIX/ { proxy_pass http://api/; }`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

_HOP_BY_HOP = frozenset(("connection", "keep-alive", "transfer-encoding", "content-length", "host"))


@asynccontextmanager
async def serving_below(prefix: str, upstream: str) -> AsyncIterator[str]:
    """Serve `upstream` below `prefix`, which is removed, and nothing elsewhere. Yields the address with the prefix.

    `Host` becomes that of the upstream, and the browser's goes on as `X-Forwarded-Host`, which are nginx's defaults and
    the headers that its documentation adds.
    """
    async with aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout()) as session:

        async def forward(request: web.Request) -> web.StreamResponse:
            headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP]
            headers += [("X-Forwarded-Host", request.headers["host"]), ("X-Forwarded-Proto", request.scheme)]
            below = request.raw_path.removeprefix(prefix)
            body = request.content if request.body_exists else None
            async with session.request(
                request.method, f"{upstream}{below}", headers=headers, data=body, allow_redirects=False
            ) as answer:
                response = web.StreamResponse(status=answer.status)
                for name, value in answer.headers.items():
                    if name.lower() not in _HOP_BY_HOP:
                        response.headers.add(name, value)
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response

        app = web.Application(client_max_size=0)
        app.router.add_route("*", f"{prefix}/{{below:.*}}", forward)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            yield f"http://127.0.0.1:{port}{prefix}"
        finally:
            await runner.cleanup()
