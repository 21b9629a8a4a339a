"""Reads the context length of a model from its upstream, if models.yaml does not have it.

It is read once at the start, and again while requests are sent: an idle upstream, which may have been scaled to zero,
is not woken.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import aiohttp

from workers.engines.upstream.endpoints import Endpoint, Endpoints

logger = logging.getLogger(__name__)

TIMEOUT_S = 5.0
MAX_BYTES = 1 << 20
# The wait before an endpoint that did not answer is asked again: first and longest, doubled each time.
RETRY_S = (1.0, 60.0)
# While requests are sent: how long a length is used before it is read again, and the wait before endpoints that did not
# answer are asked again.
FRESH_S = 60.0
UNREAD_S = 1.0
# Longer contexts are taken for a mistake.
MAX_TOKENS = (1 << 31) - 1


class ContextLength:
    """The context length that the endpoints of an upstream report: the shortest of theirs."""

    def __init__(
        self,
        model: str,
        endpoints: Endpoints,
        session: aiohttp.ClientSession,
        url: Callable[[str], str],
        parse: Callable[[bytes], int | None],
    ) -> None:
        """`url`: where a server with this base URL reports the length. `parse` reads it; None if it is not there."""
        self._model = model
        self._endpoints = endpoints
        self._session = session
        self._url = url
        self._parse = parse
        self._lengths: dict[Endpoint, int | None] = {}
        # Endpoints that did not answer, and when endpoints were last asked.
        self._unread: list[Endpoint] = []
        self._asked_at = 0.0
        self._used = asyncio.Event()
        self._has_failed = False

    @property
    def tokens(self) -> int | None:
        """The length; None while no endpoint has reported one."""
        return min((length for length in self._lengths.values() if length is not None), default=None)

    def use(self) -> None:
        """Note that a request is sent: the length is read again if it is old."""
        if self._unread or time.monotonic() - self._asked_at >= FRESH_S:
            self._used.set()

    async def run(self) -> None:
        """Read the length until cancelled."""
        first, longest = RETRY_S
        retry_s = first
        self._unread = list(self._endpoints)
        while True:
            asked = self._unread
            answered = await asyncio.gather(*map(self._read, asked))
            self._unread = [
                endpoint for endpoint, has_answered in zip(asked, answered, strict=True) if not has_answered
            ]
            self._asked_at = time.monotonic()
            self._used.clear()
            try:
                async with asyncio.timeout(retry_s if self._unread else None):
                    await self._used.wait()
                await asyncio.sleep(self._asked_at + UNREAD_S - time.monotonic())
                self._unread = list(self._endpoints)
            except TimeoutError:
                retry_s = min(longest, 2 * retry_s)
            else:
                retry_s = first

    async def _read(self, endpoint: Endpoint) -> bool:
        """Ask an endpoint. False: it did not answer, and what it reported before is kept."""
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                self._session.get(
                    self._url(endpoint.base_url),
                    headers={**endpoint.headers, "Accept": "application/json"},
                    proxy=endpoint.proxy,
                    allow_redirects=False,
                ) as response,
            ):
                status, content = response.status, b""
                while len(content) <= MAX_BYTES and (data := await response.content.readany()):
                    content += data
        except (aiohttp.ClientError, TimeoutError) as error:
            self._note_failure(endpoint, type(error).__name__)
            return False
        if status >= 500 or status in (401, 403, 408, 429):
            self._note_failure(endpoint, f"HTTP {status}")
            return False
        length = None
        if status == 200 and len(content) <= MAX_BYTES:
            try:
                length = self._parse(content)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                length = None
        if isinstance(length, bool) or not isinstance(length, int) or not 2 <= length <= MAX_TOKENS:
            length = None
        if endpoint not in self._lengths or length != self._lengths[endpoint]:
            reported = "unknown" if length is None else f"{length} tokens"
            logger.info("model=%s endpoint=%s context length: %s", self._model, endpoint.name, reported)
        self._lengths[endpoint] = length
        return True

    def _note_failure(self, endpoint: Endpoint, reason: str) -> None:
        """Log the first failure: requests of clients report an upstream that cannot be reached."""
        if not self._has_failed:
            self._has_failed = True
            logger.info(
                "model=%s endpoint=%s its context length cannot be read yet: %s", self._model, endpoint.name, reason
            )
