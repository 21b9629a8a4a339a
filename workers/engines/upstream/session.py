"""The HTTP session with an upstream."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from shared.config.models.upstream import UpstreamOptions
from shared.domain.version import VERSION

MAX_ERROR_BYTES = 64 * 1024
# Longest wait for the end of a body after its last event.
TAIL_S = 1.0
# Of a response: the longest line, and the number of headers. Some gateways send policies and traces of many kilobytes.
MAX_HEADER_BYTES = 64 << 10
MAX_HEADERS = 512
# A kept connection that the server had closed breaks this soon after a request is written to it.
STALE_S = 1.0


@dataclass(slots=True)
class Sending:
    """One request: whether it was written to a kept connection, and whether its response has begun."""

    reused: bool = False
    answered: bool = False
    at: float = field(default_factory=time.monotonic)

    def is_stale(self, error: Exception) -> bool:
        """Whether the server had closed the kept connection before it received the request."""
        is_closed = isinstance(error, (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError))
        return self.reused and not self.answered and is_closed and time.monotonic() - self.at < STALE_S


def open_session(options: UpstreamOptions, headers: Mapping[str, str]) -> aiohttp.ClientSession:
    """A session without cookies or a connection limit, to be closed by the caller. Needs a running event loop."""
    reuse = aiohttp.TraceConfig()
    reuse.on_connection_reuseconn.append(_note_reuse)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={**headers, "User-Agent": f"headrace/{VERSION}"},  # filters refuse those of HTTP libraries
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        max_headers=MAX_HEADERS,
        trace_configs=[reuse],
        timeout=aiohttp.ClientTimeout(total=None, connect=options.connect_timeout_s, sock_read=options.read_timeout_s),
    )


async def _note_reuse(
    _: aiohttp.ClientSession, context: SimpleNamespace, __: aiohttp.TraceConnectionReuseconnParams
) -> None:
    if isinstance(sending := context.trace_request_ctx, Sending):
        sending.reused = True


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
