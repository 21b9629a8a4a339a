"""Relays requests to another server. A subclass implements the server's API.

Failures before the first token are retried. A stream that breaks later fails its job, because only the upstream could
resume it. Error messages for clients contain neither URLs nor keys; the log has the details.
"""

from __future__ import annotations

import asyncio
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol

import aiohttp
import orjson

from shared.config.models.upstream import UpstreamModel
from shared.domain.errors import InvalidRequest
from shared.domain.events import Delta
from shared.domain.job import Usage
from shared.domain.request import GenerateRequest
from shared.telemetry.metrics import Metrics
from workers.engines.base import EngineStats, PromptInfo, UpstreamError
from workers.engines.flush_interval import flush_interval_s
from workers.engines.resume import Resume
from workers.engines.upstream.backoff import backoff_s
from workers.engines.upstream.errors import (
    KEY_REFUSED,
    ErrorBody,
    TransientError,
    connection_error,
    failure_kind,
    status_error,
)
from workers.engines.upstream.read_coalescing import ReadCoalescer
from workers.engines.upstream.session import open_session, read_error, read_tail

logger = logging.getLogger(__name__)


class ReplyParser(Protocol):
    """The parser of one streamed answer."""

    @property
    def begun(self) -> bool:
        """Whether a delta was returned."""

    @property
    def done(self) -> bool:
        """Whether the stream has ended, with or without a `failure`."""

    @property
    def finished(self) -> bool:
        """Whether every choice has its finish reason."""

    @property
    def failure(self) -> UpstreamError | None:
        """The error that ended the stream."""

    @property
    def usage(self) -> Usage | None:
        """The usage that the upstream reported."""

    def feed(self, data: bytes) -> list[Delta]:
        """Parse the bytes of one read."""


class UpstreamEngine(ABC):
    """Relays up to `slots` requests at the same time, each on its own connection."""

    _session: aiohttp.ClientSession

    def __init__(self, model: UpstreamModel, metrics: Metrics) -> None:
        self.fingerprint = model.fingerprint
        self._model = model
        self._options = model.options
        self._metrics = metrics
        self._label = metrics.model_label(model.name)
        self._key = ""
        self._requests = 0
        self._reads = ReadCoalescer()

    # The server's API

    @abstractmethod
    def auth_headers(self, key: str) -> Mapping[str, str]:
        """The headers that carry the key."""

    @abstractmethod
    def endpoint(self, request: GenerateRequest) -> str:
        """The path below `base_url`, without a leading slash."""

    @abstractmethod
    def body(self, request: GenerateRequest) -> dict[str, Any]:
        """The request as the server accepts it.

        Raises:
            InvalidRequest: the server's API cannot express it.
        """

    @abstractmethod
    def reply(self, request: GenerateRequest) -> ReplyParser:
        """A parser for the answer."""

    @abstractmethod
    def error_body(self, content: bytes) -> ErrorBody:
        """Parse the body of an error."""

    # The engine

    @property
    def slots(self) -> int:
        return self._model.slots

    @property
    def dead(self) -> bool:
        """Always False: an unreachable upstream may become reachable again."""
        return False

    async def start(self) -> None:
        """Open the session; sends nothing.

        Raises:
            InvalidRequest: the variable named by `api_key_env` is not set.
        """
        # A compressed stream costs more CPU here and may be delayed.
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Content-Type": "application/json"}
        if (variable := self._options.api_key_env) is not None:
            self._key = os.environ.get(variable, "").strip()
            if not self._key:
                raise InvalidRequest(
                    f"models.yaml: {self._model.name}.options.api_key_env: {variable} is not set;"
                    " set it to the upstream's key"
                )
            headers |= self.auth_headers(self._key)
        self._session = open_session(self._options, headers)

    async def stop(self) -> None:
        await self._session.close()

    def resume_mode(self, request: GenerateRequest) -> Resume:
        return Resume.NONE

    def stats(self) -> EngineStats:
        return EngineStats(self._requests)

    async def generate(
        self, request_id: str, request: GenerateRequest, prior: Sequence[Delta] = (), *, comparable: bool = True
    ) -> AsyncGenerator[Delta | PromptInfo | Usage, None]:
        url = f"{self._options.base_url}/{self.endpoint(request)}"
        body = orjson.dumps(self.body(request))
        failures = 0
        self._requests += 1
        try:
            while True:
                reply = self.reply(request)
                failure = TransientError("The upstream ended its answer too early.", "the body ended before the answer")
                try:
                    async with self._session.post(url, data=body, allow_redirects=False) as response:
                        self._metrics.upstream_requests.labels(self._label, str(response.status)).inc()
                        if response.status != 200:
                            raise await self._status_error(response, request)
                        while not reply.done and (data := await response.content.readany()):
                            for delta in reply.feed(data):
                                yield delta
                            if reply.begun and not reply.done:
                                await self._delay_read(response)
                        if reply.failure is not None and not reply.finished:
                            raise reply.failure
                        if reply.done:
                            await read_tail(response)
                except TransientError as error:
                    failure = error
                except (aiohttp.ClientError, TimeoutError) as error:
                    failure = connection_error(error)
                    self._metrics.upstream_failures.labels(self._label, failure_kind(error)).inc()
                if reply.finished:
                    break  # a failure after the last finish reason affects only the usage
                delay_s = backoff_s(failures, failure.retry_after_s)
                logger.warning("call=%s upstream failure %d: %s", request_id, failures + 1, failure.details)
                if reply.begun or failures >= self._options.max_retries or delay_s is None:
                    raise UpstreamError(str(failure))
                failures += 1
                self._metrics.upstream_retries.labels(self._label).inc()
                await asyncio.sleep(delay_s)
        finally:
            self._requests -= 1
        if reply.usage is not None:
            yield reply.usage

    async def _delay_read(self, response: aiohttp.ClientResponse) -> None:
        """Leave data in the socket until the next flush would write it: one large read costs less than many small ones.

        TLS connections are not delayed: uvloop continues to read from a paused TLS connection and drops the data that
        it has not decrypted if the server then closes the connection.
        """
        transport = response.connection and response.connection.transport
        if transport and transport.get_extra_info("ssl_object") is None:
            transport.pause_reading()
            await self._reads.wait(flush_interval_s(self._requests))
            transport.resume_reading()

    async def _status_error(self, response: aiohttp.ClientResponse, request: GenerateRequest) -> Exception:
        status = response.status
        if status in KEY_REFUSED:
            variable = self._options.api_key_env
            logger.error(
                "model=%s the upstream refused the key (HTTP %d); api_key_env is %s",
                self._model.name,
                status,
                variable or "not set",
            )
            return UpstreamError(f"The upstream refused the key (HTTP {status}).")
        body = self.error_body(await read_error(response))
        if self._key:
            body = ErrorBody(body.message.replace(self._key, "***"), body.param)
        return status_error(
            status, response.headers, body, default_param="messages" if request.messages is not None else "prompt"
        )
