"""Relays to a server that speaks OpenAI's API: OpenAI, Gemini's compatible endpoint, TGI, another vLLM.

Failures before the first token are tried again; a stream that breaks later fails its job, since nobody but the
upstream could go on at the next token. What a client is told names no address and no key; the log has the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Sequence
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson

from shared.config.models.openai import OpenAIModel
from shared.domain.errors import InvalidRequest
from shared.domain.events import Delta
from shared.domain.job import Usage
from shared.domain.request import GenerateRequest
from shared.telemetry.metrics import Metrics
from workers.engines.base import EngineStats, PromptInfo, Resume, UpstreamError
from workers.engines.openai.request import asked
from workers.engines.openai.stream import Reply, told, told_param
from workers.engines.pacing import flush_interval_s
from workers.engines.upstream.backoff import asked_wait_s, wait_s
from workers.engines.upstream.read_coalescing import ReadCoalescer

logger = logging.getLogger(__name__)

REFUSED = (400, 404, 413, 422)
KEY_REFUSED = (401, 403)
MAX_ERROR_BYTES = 64 * 1024
# After [DONE] the body's end is awaited for so long, so that the connection can be used again.
TAIL_S = 1.0


class _Passing(Exception):
    """A failure that may pass. The message is for the client, `details`, which quote nothing, for the log."""

    def __init__(self, message: str, details: str, asked_s: float | None = None) -> None:
        super().__init__(message)
        self.details = details
        self.asked_s = asked_s


class OpenAIEngine:
    """The `openai` engine: `slots` requests at once, each on a connection of its own."""

    _session: aiohttp.ClientSession

    def __init__(self, model: OpenAIModel, metrics: Metrics) -> None:
        self._model = model
        self._metrics = metrics
        self._label = metrics.model_label(model.name)
        self._options = model.options
        self._key = ""
        self._requests = 0
        self._beat = ReadCoalescer()

    @property
    def slots(self) -> int:
        return self._model.slots

    @property
    def dead(self) -> bool:
        """An upstream that is down may come back: never."""
        return False

    async def start(self) -> None:
        """Asks nothing of the upstream.

        Raises:
            InvalidRequest: the variable that `api_key_env` names is not set.
        """
        options = self._options
        # Compressed, a stream would cost more here, and may come late.
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Content-Type": "application/json"}
        if options.api_key_env is not None:
            self._key = os.environ.get(options.api_key_env, "").strip()
            if not self._key:
                raise InvalidRequest(
                    f"models.yaml: {self._model.name}.options.api_key_env: {options.api_key_env} is not set;"
                    " set it to the upstream's key"
                )
            headers["Authorization"] = f"Bearer {self._key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            timeout=aiohttp.ClientTimeout(
                total=None, connect=options.connect_timeout_s, sock_read=options.read_timeout_s
            ),
            proxy=_proxy(options.base_url),
        )

    async def stop(self) -> None:
        await self._session.close()

    def resume_mode(self, request: GenerateRequest) -> Resume:
        return Resume.NOT

    def stats(self) -> EngineStats:
        return EngineStats(self._requests)

    async def generate(
        self, request_id: str, request: GenerateRequest, prior: Sequence[Delta] = ()
    ) -> AsyncGenerator[Delta | PromptInfo | Usage, None]:
        url = f"{self._options.base_url}/{'completions' if request.messages is None else 'chat/completions'}"
        body = orjson.dumps(self._body(request))
        failures = 0
        self._requests += 1
        try:
            while True:
                reply = Reply(request.sampling.n)
                failure = _Passing("The upstream ended its answer too early.", "the answer has no end")
                try:
                    async with self._session.post(url, data=body, allow_redirects=False) as response:
                        self._metrics.upstream_requests.labels(self._label, str(response.status)).inc()
                        if response.status != 200:
                            await self._refuse(response, request)
                        while not reply.done and (data := await response.content.readany()):
                            for delta in reply.feed(data):
                                yield delta
                            if reply.begun and not reply.done:
                                await self._let_gather(response)
                        if reply.failure is not None and not reply.finished:
                            raise reply.failure
                        if reply.done:
                            await _read_tail(response)
                except (_Passing, aiohttp.ClientError, TimeoutError) as error:
                    failure = error if isinstance(error, _Passing) else _passing(error)
                    if not isinstance(error, _Passing):
                        self._metrics.upstream_failures.labels(self._label, _kind(error)).inc()
                if reply.finished:
                    break  # what broke then cost its usage at most
                wait = wait_s(failures, failure.asked_s)
                logger.warning("call=%s the upstream failed, failure %d: %s", request_id, failures + 1, failure.details)
                if reply.begun or failures >= self._options.max_retries or wait is None:
                    raise UpstreamError(str(failure))
                failures += 1
                self._metrics.upstream_retries.labels(self._label).inc()
                await asyncio.sleep(wait)
        finally:
            self._requests -= 1
        if reply.usage is not None:
            yield reply.usage

    async def _let_gather(self, response: aiohttp.ClientResponse) -> None:
        """Leave what comes in the socket for as long as it would wait for its flush: one read costs less than many.

        Not with TLS: uvloop's transport reads on while it is paused, and where the server then closes the connection,
        loses what it has not decrypted.
        """
        transport = response.connection and response.connection.transport
        if transport and transport.get_extra_info("ssl_object") is None:
            transport.pause_reading()
            await self._beat.wait(flush_interval_s(self._requests))
            transport.resume_reading()

    def _body(self, request: GenerateRequest) -> dict[str, Any]:
        """What the upstream is sent."""
        body = asked(request, max_tokens_field=self._options.max_tokens_field)
        return body | {"model": self._model.model, "stream": True, "stream_options": {"include_usage": True}}

    async def _refuse(self, response: aiohttp.ClientResponse, request: GenerateRequest) -> None:
        """Raise what an answer other than 200 means."""
        status = response.status
        if status in KEY_REFUSED:
            variable = self._options.api_key_env
            logger.error("model=%s: HTTP %d; api_key_env is %s", self._model.name, status, variable or "not set")
            raise UpstreamError(f"The upstream refused the key (HTTP {status}).")
        content = b""
        while len(content) < MAX_ERROR_BYTES and (data := await response.content.readany()):
            content += data
        message = told(content)
        if self._key:
            message = message.replace(self._key, "***")
        if status in REFUSED:
            param = told_param(content) or ("messages" if request.messages is not None else "prompt")
            raise InvalidRequest(message or f"The upstream refused the request (HTTP {status}).", param=param)
        text = f"The upstream answered HTTP {status}{f': {message}' if message else ''}."
        if status in (408, 429) or status >= 500:
            raise _Passing(text, f"HTTP {status}", asked_wait_s(response.headers))
        raise UpstreamError(text)


def _proxy(url: str) -> str | None:
    """The proxy that HTTPS_PROXY and its like name, asked once. aiohttp's `trust_env` reads ~/.netrc each time too."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def _kind(error: Exception) -> str:
    """A failure of the connection, as a label."""
    match error:
        case TimeoutError():
            return "timeout"
        case aiohttp.ClientConnectorError():
            return "unreachable"
        case _:
            return "broken"


def _passing(error: Exception) -> _Passing:
    details = type(error).__name__  # its words may quote the answer
    match error:
        case TimeoutError():
            return _Passing("The upstream did not answer in time.", details)
        case aiohttp.ClientConnectorError():
            return _Passing("The upstream cannot be reached.", f"{details}: {error}")
        case _:
            return _Passing("The connection to the upstream broke.", details)


async def _read_tail(response: aiohttp.ClientResponse) -> None:
    if response.content.is_eof():
        return
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        async with asyncio.timeout(TAIL_S):
            while await response.content.readany():
                pass
