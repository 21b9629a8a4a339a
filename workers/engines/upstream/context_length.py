"""Reads the context length of a model from its upstream, if models.yaml does not have it.

It is read at the start, and again while clients use the model. An idle upstream, which may have been scaled to zero, is
not kept awake.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

import aiohttp

from workers.engines.upstream.endpoints import Endpoint

logger = logging.getLogger(__name__)

TIMEOUT_S = 5.0
MAX_BYTES = 1 << 20
# The waits before an endpoint that did not answer is asked again: first and longest, doubled each time; and how many
# times it is asked again while nobody uses the model: for about ten minutes.
RETRY_S = (1.0, 60.0)
RETRIES = 15
# While clients use the model: how long a length is used before it is read again, and the first and the longest wait
# before endpoints that did not answer are asked again.
FRESH_S = 60.0
UNREAD_S = (1.0, 5.0)
# Longer contexts are taken for a mistake.
MAX_TOKENS = (1 << 31) - 1


class ContextLength:
    """The context length that the endpoints of an upstream report: the shortest of theirs."""

    def __init__(
        self,
        model: str,
        endpoints: Iterable[Endpoint],
        session: aiohttp.ClientSession,
        url: Callable[[str], str],
        parse: Callable[[bytes], int | None],
    ) -> None:
        """`url`: where a server with this base URL reports the length. `parse` reads it; None if it is not there."""
        self._model = model
        self._endpoints = list(endpoints)
        self._session = session
        self._url = url
        self._parse = parse
        self._lengths: dict[Endpoint, int | None] = {}
        # Endpoints that did not answer, and how many times in a row there were such endpoints.
        self._unread: list[Endpoint] = []
        self._failures = 0
        # When all endpoints, and when any, were last asked.
        self._all_asked_at = self._asked_at = 0.0
        self._used = asyncio.Event()
        self._has_failed = False
        # When an endpoint last answered; None while none has reported a length.
        self.read_at: float | None = None

    @property
    def tokens(self) -> int | None:
        """The length; None if no endpoint reports one."""
        return min((length for length in self._lengths.values() if length is not None), default=None)

    def use(self) -> None:
        """Note that a request is sent, or was refused because of the length: it is read again if it is old."""
        if self._unread or self._is_old:
            self._used.set()

    async def run(self) -> None:
        """Read the length until cancelled."""
        asked = self._endpoints
        while True:
            self._asked_at = time.monotonic()
            if len(asked) == len(self._endpoints):
                self._all_asked_at = self._asked_at
            answered = await asyncio.gather(*map(self._read, asked))
            self._unread = [
                endpoint for endpoint, has_answered in zip(asked, answered, strict=True) if not has_answered
            ]
            self._failures = self._failures + 1 if self._unread else 0
            self._used.clear()
            asked = await self._due()

    async def _due(self) -> list[Endpoint]:
        """Wait until endpoints are to be asked again, and return these."""
        try:
            async with asyncio.timeout(_wait_s(RETRY_S, self._failures) if 0 < self._failures <= RETRIES else None):
                await self._used.wait()
                await asyncio.sleep(self._asked_at + _wait_s(UNREAD_S, self._failures) - time.monotonic())
        except TimeoutError:
            return self._unread
        return self._endpoints if self._is_old else self._unread

    @property
    def _is_old(self) -> bool:
        return time.monotonic() - self._all_asked_at >= FRESH_S

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
        except Exception as error:  # also of the address, TLS or a proxy: none may end the task
            self._note_failure(endpoint, type(error).__name__)
            return False
        if status >= 500 or status in (401, 403, 408, 429):
            self._note_failure(endpoint, f"HTTP {status}")
            return False
        length = None
        if status == 200 and len(content) <= MAX_BYTES:
            try:
                length = self._parse(content)
            except Exception:  # the page may have anything
                length = None
        if isinstance(length, bool) or not isinstance(length, int) or not 2 <= length <= MAX_TOKENS:
            length = None
        if endpoint not in self._lengths or length != self._lengths[endpoint]:
            reported = "unknown" if length is None else f"{length} tokens"
            logger.info("model=%s endpoint=%s context length: %s", self._model, endpoint.name, reported)
        self._lengths[endpoint] = length
        if length is not None or self.read_at is not None:
            self.read_at = time.monotonic()
        return True

    def _note_failure(self, endpoint: Endpoint, reason: str) -> None:
        """Log the first failure: requests of clients report an upstream that cannot be reached."""
        if not self._has_failed:
            self._has_failed = True
            logger.info(
                "model=%s endpoint=%s its context length cannot be read yet: %s", self._model, endpoint.name, reason
            )


def _wait_s(limits: tuple[float, float], failures: int) -> float:
    """The wait after the last of so many failures."""
    first, longest = limits
    return min(longest, first * 2.0 ** min(max(0, failures - 1), 10))
