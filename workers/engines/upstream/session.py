"""The HTTP session with an upstream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from shared.config.models.upstream import UpstreamOptions

MAX_ERROR_BYTES = 64 * 1024
# Longest wait for the end of a body after its last event.
TAIL_S = 1.0


def open_session(options: UpstreamOptions, headers: Mapping[str, str]) -> aiohttp.ClientSession:
    """A session without cookies or a connection limit, to be closed by the caller. Needs a running event loop."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=None, connect=options.connect_timeout_s, sock_read=options.read_timeout_s),
    )


def proxy_of(url: str) -> str | None:
    """The proxy from HTTPS_PROXY and similar variables. aiohttp's `trust_env` would read ~/.netrc at each request."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


async def send_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """A middleware for GET requests that aiohttp must not repeat after a kept connection turned out to be closed."""
    try:
        return await handler(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        if isinstance(error, aiohttp.ClientConnectorError):
            raise  # nothing was sent, and aiohttp does not repeat it
        raise aiohttp.ClientPayloadError("the connection was closed before the response") from error


async def read_error(response: aiohttp.ClientResponse) -> bytes:
    """The body of an error, up to `MAX_ERROR_BYTES` or one read more."""
    content = b""
    while len(content) < MAX_ERROR_BYTES and (data := await response.content.readany()):
        content += data
    return content


async def read_tail(response: aiohttp.ClientResponse) -> None:
    """Read the rest of a body, so that its connection can be reused."""
    if response.content.is_eof():
        return
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        async with asyncio.timeout(TAIL_S):
            while await response.content.readany():
                pass
