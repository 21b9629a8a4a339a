"""Relays requests to another server. A subclass implements the server's API.

A request that fails before its first token is repeated a few times, then its job is deferred. A stream that breaks
later fails its job, unless the upstream can resume it. Error messages for clients contain neither URLs nor keys; the
log has the details.
"""

from __future__ import annotations

import asyncio
import io
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, TypeVar

import aiohttp
import orjson

from shared.config.models.upstream import UpstreamModel
from shared.domain.errors import InvalidRequest
from shared.domain.events import Delta, UpstreamState
from shared.domain.job import Usage
from shared.domain.request import GenerateRequest
from shared.runtime.aio import cancel_and_wait
from shared.runtime.time_slice import TimeSlice
from shared.telemetry.metrics import Metrics
from workers.engines.base import (
    NO_PRIOR,
    BusyReason,
    CannotContinue,
    Engine,
    EngineError,
    EngineStats,
    Prior,
    PromptInfo,
    ReportedContext,
    UpstreamBusy,
    UpstreamError,
)
from workers.engines.flush_interval import flush_interval_s
from workers.engines.resume import Resume
from workers.engines.upstream.answer_limit import AnswerLimit
from workers.engines.upstream.backoff import backoff_s
from workers.engines.upstream.context_length import ContextLength
from workers.engines.upstream.endpoints import Endpoint, Endpoints
from workers.engines.upstream.error_body import parse_error, request_id_of
from workers.engines.upstream.errors import (
    FORBIDDEN,
    KEY_REFUSED,
    LIMITED,
    NO_CREDIT,
    TIMED_OUT,
    TOO_EARLY,
    ErrorBody,
    KeyUnusable,
    NotHere,
    RunLost,
    TransientError,
    connection_error,
    reported_error,
    status_error,
)
from workers.engines.upstream.exchange import Call, Exchange
from workers.engines.upstream.gate import UpstreamGate
from workers.engines.upstream.health_check import start_health_checks
from workers.engines.upstream.read_coalescing import ReadCoalescer
from workers.engines.upstream.redaction import redact, without_secrets
from workers.engines.upstream.redirects import MAX_REDIRECTS, redirected
from workers.engines.upstream.refused_parameters import REFUSED, RefusedParameters, replaced
from workers.engines.upstream.session import Sending, open_session, read_error, read_tail, send_once
from workers.engines.upstream.stall import StallTimer, stall_timeout_s

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Bodies are written, and reads are parsed, in pieces of this size, with time for other tasks between them.
PIECE_BYTES = 64 << 10
# Longest wait for more output, the usage, or the end of a stream whose choices have their finish reasons: some servers
# leave it open.
TRAILER_S = 5.0
# Attempts to reach an upstream that runs a request on, about 40 seconds: giving up would lose what it generates.
MAX_RESUMES = 8
# The longest wait before such a repetition, whatever delay the upstream names.
RESUME_DELAY_MAX_S = 60.0
# Of a request that the upstream runs on, such as one that waits for a cold start: the upstream has accepted it.
SAYS_NOTHING = (BusyReason.TIMEOUT, BusyReason.BROKEN)
# Any other status of the client's errors means that the request has ended, or that the upstream does not know it.
MAY_CANCEL_LATER = (KEY_REFUSED, FORBIDDEN, NO_CREDIT, TIMED_OUT, TOO_EARLY, LIMITED)
# The member of an `UpstreamState`'s data with the API of the run.
_API = "api"


class UpstreamEngine(ABC):
    """Relays up to `slots` requests at the same time, each on its own connection."""

    # The API whose requests run on without their connection, so that a later attempt can resume them. Their states are
    # marked with it. None: a request ends with its connection.
    run_api: str | None = None

    _session: aiohttp.ClientSession
    _endpoints: Endpoints

    def __init__(self, model: UpstreamModel, metrics: Metrics) -> None:
        self.fingerprint = model.fingerprint
        self._model = model
        self._options = model.options
        self._stall_timeout_s = stall_timeout_s(model.options)
        self._metrics = metrics
        self._label = metrics.model_label(model.name)
        self._requests = 0
        self._reads = ReadCoalescer()
        self._refused = RefusedParameters(model.name)
        self._context: ContextLength | None = None
        self.gate = UpstreamGate(model, metrics)

    # The server's API

    def auth_headers(self, key: str) -> Mapping[str, str]:
        """The headers that carry the key."""
        return {"Authorization": f"Bearer {key}"}

    @abstractmethod
    async def exchange(self, request: GenerateRequest, prior: Prior) -> Exchange:
        """The requests for a job that continues after `prior`, and the parser of their answers.

        Raises:
            InvalidRequest: the server's API cannot express the job.
            CannotContinue: `prior` has output, and the server's API cannot continue it.
        """

    def cancel_call(self, run_id: str) -> Call:
        """The request that tells the upstream to stop a run. Only engines with a `run_api` need it."""
        raise NotImplementedError

    def optional(self, body: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """The parameters of a body that can be replaced, if the server refuses them, without changing the answer."""
        return {}

    def corrected(self, body: Mapping[str, Any], error: bytes) -> Mapping[str, Any]:
        """Other values for parameters of a body whose values the server refuses, in place of an error."""
        return {}

    def error_body(self, content: bytes) -> ErrorBody:
        """Parse the body of an error."""
        return parse_error(content)

    def is_classified(self, content: bytes) -> bool:
        """Whether the body of an error, not the HTTP status, says what kind of error it is."""
        return False

    def length_url(self, base_url: str) -> str:
        """Where the server reports the model's context length; only for models with a `context_source`."""
        raise NotImplementedError

    def length_in(self, content: bytes) -> int | None:
        """The context length in that body; None if it has none. May raise errors of all kinds."""
        raise NotImplementedError

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
            InvalidRequest: a variable named by an `api_key_env` is not set.
        """
        # A compressed stream costs more CPU here and may be delayed.
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Content-Type": "application/json"}
        self._endpoints = Endpoints(self._model, self.auth_headers)
        self._session = open_session(self._options, headers)
        self._tasks = start_health_checks(self._endpoints, self._session, self._options)
        if self._model.context_source is not None:
            self._context = ContextLength(
                self._model.name, self._endpoints, self._session, self.length_url, self.length_in
            )
            self._tasks.append(asyncio.create_task(self._context.run(), name="context-length"))

    async def stop(self) -> None:
        await cancel_and_wait(*self._tasks)
        await self._session.close()

    def take_over(self, earlier: Engine) -> None:
        """Use its gate, with what is left of the limits and the state of the breaker, and set aside the same keys."""
        assert isinstance(earlier, UpstreamEngine)
        self.gate = earlier.gate
        self.gate.configure(self._model)
        if not self._endpoints.take_over(earlier._endpoints):
            self.gate.forget_failures()

    def resume_mode(self, request: GenerateRequest, prior: Prior = NO_PRIOR) -> Resume:
        """Exactly, if the upstream runs a request on after its connection was lost, and has begun it for this model."""
        if self.run_api is None:
            return Resume.NONE
        state = prior.upstream
        return Resume.EXACT if (self._is_own(state) if state is not None else not prior.deltas) else Resume.NONE

    async def cancel(self, state: UpstreamState) -> None:
        """Stop a run. Upstreams without runs stop when the connection is closed."""
        if not self._is_own(state):
            logger.warning(
                "model=%s the upstream's request %s is of another API or endpoint, and is not cancelled",
                self._model.name,
                state.id,
            )
            return
        await self._send_cancel(self.cancel_call(state.id), state)

    def _is_own(self, state: UpstreamState) -> bool:
        """Whether a run is one of this API, at an endpoint that the model's entry still has."""
        is_of_api = self.run_api is not None and state.data.get(_API) == self.run_api
        return is_of_api and self._endpoints.owner(state) is not None

    def _resumable(self, prior: Prior) -> Prior:
        """What an answer continues from: without a run that this engine cannot resume.

        Raises:
            CannotContinue: there is output, and only its run could continue it.
        """
        if prior.upstream is not None and not self._is_own(prior.upstream):
            prior = replace(prior, upstream=None, cursor=None)
        if self.run_api is not None and prior.deltas and prior.upstream is None:
            raise CannotContinue
        return prior

    def _marked(self, item: T, endpoint: Endpoint) -> T | UpstreamState:
        """Add to the state of a run its API and endpoint; other items are returned as they are."""
        if not isinstance(item, UpstreamState):
            return item
        return self._endpoints.mark(replace(item, data={**item.data, _API: self.run_api}), endpoint)

    def stats(self) -> EngineStats:
        context = None
        if self._context is not None and (source := self._model.context_source) and (tokens := self._context.tokens):
            context = ReportedContext(source, tokens)
        return EngineStats(self._requests, endpoints=self._endpoints.states, context=context)

    async def generate(
        self, request_id: str, request: GenerateRequest, prior: Prior = NO_PRIOR
    ) -> AsyncGenerator[Delta | PromptInfo | UpstreamState | Usage, None]:
        exchange: Exchange | None = None
        call: Call | None = None
        prior = self._resumable(prior)
        endpoint = self._endpoints.owner(prior.upstream) or self._endpoints.choose()
        recreated = sent_again = False
        sending = Sending()
        tried: set[Endpoint] = set()
        failures = failed_runs = redirects = 0
        answered = False
        length = self._model.max_model_len
        if self._context is not None:
            self._context.use()
            length = self._context.tokens
        limit = AnswerLimit(request, length)
        replacements: dict[str, Mapping[str, Any]] = {}
        self._requests += 1
        if prior.upstream is not None:
            self._metrics.upstream_resumes.labels(self._label, "attempt").inc()
        try:
            while True:
                if exchange is None or call is None:
                    exchange = await self.exchange(request, prior)
                    call = exchange.first()
                    # Whether the upstream runs the request on without its connection.
                    runs_on = prior.upstream is not None
                reply = exchange.parser
                failure = TransientError(
                    "The upstream ended its answer too early.",
                    "the body ended before the answer",
                    reason=BusyReason.BROKEN,
                )
                try:
                    while call is not None:
                        if call.delay_s:
                            await asyncio.sleep(call.delay_s)
                        parameters, body = self._encoded(call, replacements)
                        sending = Sending()
                        async with self._send(call, body, endpoint, sending) as response:
                            sending.answered = True
                            self._metrics.upstream_requests.labels(self._label, str(response.status)).inc()
                            if not response.ok or response.status >= 300:
                                content = await read_error(response)
                                if (call_there := self._redirected(response, call, endpoint, redirects)) is not None:
                                    call, redirects = call_there, redirects + 1
                                    continue
                                if refused := self._refused_by(response.status, content, parameters, replacements):
                                    replacements |= refused
                                    continue
                                if (other := exchange.instead(response.status)) is not None:
                                    call = other
                                    continue
                                error = self._status_error(request_id, response, content, request, body)
                                if isinstance(error, InvalidRequest):
                                    self.gate.succeeded()  # it works: it has read the request
                                raise error
                            self._refused.remember(replacements)
                            exchange.accepted(parameters)
                            if runs_on and not answered:
                                answered = True
                                self.gate.succeeded()
                            finished_at, trailer_s = 0.0, TRAILER_S
                            stall = StallTimer(self._stall_timeout_s)
                            while not (reply.done or exchange.over):
                                if reply.finished:
                                    finished_at = finished_at or asyncio.get_running_loop().time()
                                    data = await _read_until(response, finished_at + trailer_s)
                                else:
                                    data = await response.content.readany()
                                if not data:
                                    break
                                limit.read(len(data), repeats=exchange.repeats)
                                slice_ = TimeSlice()
                                has_output = False
                                for start in range(0, len(data), PIECE_BYTES):
                                    for delta in reply.feed(data[start : start + PIECE_BYTES]):
                                        has_output = True
                                        if finished_at:  # more than one chunk has a finish reason
                                            trailer_s = max(TRAILER_S, self._options.read_timeout_s)
                                        finished_at = 0.0
                                        if isinstance(delta, Delta):
                                            failures = 0
                                        if not answered:
                                            answered = True
                                            self.gate.succeeded()
                                        runs_on = runs_on or isinstance(delta, UpstreamState)
                                        if exchange.repeats and isinstance(delta, Delta):
                                            limit.emitted(delta)
                                        yield self._marked(delta, endpoint)
                                        if slice_.over:
                                            await slice_.give_way()
                                    if reply.done:
                                        break
                                    if slice_.over:
                                        await slice_.give_way()
                                if not reply.done:
                                    stall.read(has_output=has_output)
                                if reply.begun and not reply.done:
                                    await self._delay_read(response)
                            if not reply.done:
                                slice_ = TimeSlice()
                                for rest in reply.end():
                                    if exchange.repeats and isinstance(rest, Delta):
                                        limit.emitted(rest)
                                    if rest is not None:
                                        runs_on = runs_on or isinstance(rest, UpstreamState)
                                        if not answered:
                                            answered = True
                                            self.gate.succeeded()
                                        yield self._marked(rest, endpoint)
                                    if slice_.over:
                                        await slice_.give_way()
                            if endpoint.health.failures and reply.finished:
                                self._endpoints.succeeded(endpoint)
                            if reply.failure is not None and not reply.finished:
                                raise self._reply_error(request_id, reply.failure, request, body)
                            if reply.done and not exchange.leaves_early:
                                await read_tail(response)
                        if reply.done or reply.finished:
                            break
                        if (call := exchange.next()) is not None:
                            failures = 0
                except RunLost as lost:
                    if prior.deltas or reply.begun:
                        raise CannotContinue(lost.message) from lost
                    if recreated:
                        raise
                    logger.warning("call=%s %s; the request is sent again", request_id, lost.message.rstrip("."))
                    self._metrics.upstream_retries.labels(self._label).inc()
                    exchange, prior, recreated = None, NO_PRIOR, True
                    continue
                except TransientError as error:
                    failure = error
                except (aiohttp.ClientError, TimeoutError) as error:
                    if self.run_api is None and not sent_again and sending.is_stale(error):
                        sent_again = True
                        continue
                    failure = connection_error(error)
                    self._metrics.upstream_failures.labels(self._label, failure.reason.value).inc()
                if reply.finished:  # a failure after the last finish reason affects only the usage
                    for rest in reply.end():
                        if rest is not None:
                            yield rest
                    break
                logger.warning("call=%s upstream failure %d: %s", request_id, failures + 1, failure.details)
                of_key = isinstance(failure, KeyUnusable)
                if not isinstance(failure, NotHere):
                    self._endpoints.failed(endpoint, failure.details, of_key=of_key)
                if (call := exchange.resume()) is not None:
                    self._metrics.upstream_resumes.labels(self._label, "connection").inc()
                if call is None and runs_on and not reply.begun:  # the run has failed: a new one may not
                    if prior.deltas:
                        raise failure.final
                    if prior.upstream is not None:
                        prior, endpoint = NO_PRIOR, self._endpoints.choose()
                        continue
                    # The responses that created and followed it have reset the count.
                    failures, failed_runs = failed_runs, failed_runs + 1
                if call is None and not reply.begun:
                    tried.add(endpoint)
                    if self._endpoints.has_other(tried):
                        endpoint = self._endpoints.choose(tried)
                        self._metrics.upstream_retries.labels(self._label).inc()
                        continue
                    tried.clear()
                    endpoint = self._endpoints.choose()
                limited = failure.reason is BusyReason.RATE_LIMIT
                if limited and not of_key:
                    self.gate.limited(failure.retry_after_s)
                elif isinstance(failure, NotHere) and not failure.by_upstream:
                    self.gate.succeeded()
                elif of_key or not (reply.begun or (runs_on and failure.reason in SAYS_NOTHING)):
                    reason = failure.reason
                    what = failure.details if of_key or reason is BusyReason.SERVER_ERROR else reason.value
                    by_request = not of_key and reason is not BusyReason.UNREACHABLE
                    self.gate.failed(_job_id(request_id), what, by_request=by_request)
                delay_s = backoff_s(failures, failure.retry_after_s, limited=limited and call is None)
                retries = self._options.max_retries
                if call is not None and failure.reason is not BusyReason.TIMEOUT:
                    retries = max(retries, MAX_RESUMES)
                    if delay_s is None:  # the answer is generated meanwhile, and would be lost
                        delay_s = min(failure.retry_after_s or 0.0, RESUME_DELAY_MAX_S)
                if failure.is_final or (reply.begun and call is None):
                    raise failure.final
                if failures >= retries or delay_s is None or (call is None and self.gate.closed):
                    raise UpstreamBusy(
                        str(failure),
                        failure.reason,
                        retry_after_s=failure.retry_after_s,
                        max_wait_s=self._options.max_wait_s,
                    )
                failures += 1
                self._metrics.upstream_retries.labels(self._label).inc()
                self.gate.repeated()
                await asyncio.sleep(delay_s)
        finally:
            self._requests -= 1
        if (usage := reply.usage) is not None:
            yield usage

    def _encoded(self, call: Call, replacements: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], bytes]:
        """The parameters of a call, without those that the upstream refuses, and their encoding."""
        if call.body is None:
            return {}, b""
        parameters = self._refused.accepted(dict(call.body), self.optional(call.body))
        if replacements:
            parameters = replaced(parameters, {name: replacements[name] for name in replacements if name in parameters})
        return parameters, orjson.dumps(parameters)

    async def _send_cancel(self, call: Call, state: UpstreamState) -> None:
        """Send the call that cancels a request. Returns if the upstream has cancelled it, or refuses to for good.

        Raises:
            UpstreamError: it may succeed later.
            aiohttp.ClientError, TimeoutError: there is no response.
        """
        endpoint = self._endpoints.owner(state)
        assert endpoint is not None
        async with self._send(call, self._encoded(call, {})[1], endpoint) as response:
            self._metrics.upstream_requests.labels(self._label, str(response.status)).inc()
            await read_error(response)
            if 300 <= response.status < 400 or response.status in MAY_CANCEL_LATER or response.status >= 500:
                raise UpstreamError(f"The upstream answered HTTP {response.status}.")

    def _send(
        self, call: Call, body: bytes, endpoint: Endpoint, sending: Sending | None = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        url = call.path if "://" in call.path else f"{endpoint.base_url}/{call.path}"
        data = None if call.body is None else _payload(body)
        headers = {**endpoint.headers, **call.headers}
        return self._session.request(
            call.verb,
            url,
            data=data,
            headers=headers,
            allow_redirects=False,
            proxy=endpoint.proxy,
            trace_request_ctx=sending,
            middlewares=(send_once,) if call.once else None,
        )

    def _redirected(
        self, response: aiohttp.ClientResponse, call: Call, endpoint: Endpoint, redirects: int
    ) -> Call | None:
        """The request that follows a redirect; None if it may not be followed."""
        if not self._model.follows_redirects or redirects >= MAX_REDIRECTS:
            return None
        return redirected(call, response.status, response.headers, str(response.url), endpoint.base_url)

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

    def _refused_by(
        self, status: int, content: bytes, parameters: dict[str, Any], tried: Collection[str]
    ) -> dict[str, Mapping[str, Any]]:
        """The parameters that the upstream refused with this response, with what replaces them."""
        if status not in REFUSED:
            return {}
        refused = self._refused.named_in(content, parameters, self.optional(parameters), tried)
        for name in refused:
            self._metrics.upstream_refused_parameters.labels(self._label, name).inc()
        if refused:
            return refused
        corrected = self.corrected(parameters, content)
        return {name: {name: value} for name, value in corrected.items() if name not in tried}

    def _status_error(
        self, request_id: str, response: aiohttp.ClientResponse, content: bytes, request: GenerateRequest, sent: bytes
    ) -> Exception:
        status = response.status
        error = self.error_body(content)
        error = replace(error, request_id=error.request_id or request_id_of(response.headers))
        body = self._for_client(request_id, f"HTTP {status}", error, sent)
        if self.is_classified(content) and status not in (KEY_REFUSED, NO_CREDIT, FORBIDDEN):
            return reported_error(body, _default_param(request))
        return status_error(status, response.headers, body, default_param=_default_param(request))

    def _reply_error(
        self, request_id: str, failure: EngineError | ErrorBody, request: GenerateRequest, sent: bytes
    ) -> Exception:
        """The error for a failure that the upstream reported after it had begun its response."""
        if isinstance(failure, EngineError):
            return failure
        error = "an error in the answer"
        return reported_error(self._for_client(request_id, error, failure, sent), _default_param(request))

    def _for_client(self, request_id: str, what: str, error: ErrorBody, sent: bytes) -> ErrorBody:
        """The error without addresses, paths and secrets. The log gets the first two, unless the request has them.

        The whole text is logged only if the operator wants it, because it may quote a prompt.
        """
        if error.request_id is not None:
            logger.warning("call=%s upstream: %s; the upstream's request id is %s", request_id, what, error.request_id)
        redacted = redact(error.message, *self._endpoints.keys)
        removed = [part for part in redacted.removed if orjson.dumps(part)[1:-1] not in sent]
        if removed:
            logger.warning(
                "call=%s upstream: %s; removed from its message: %s",
                request_id,
                what,
                " ".join(without_secrets(part, *self._endpoints.keys) for part in removed),
            )
        if self._options.log_error_texts:
            text = without_secrets(error.message, *self._endpoints.keys)
            logger.warning("call=%s upstream: %s: %s", request_id, what, text)
        return replace(error, message=redacted.text)


async def _read_until(response: aiohttp.ClientResponse, deadline: float) -> bytes:
    """Read data; nothing if there is none by then, on the clock of the event loop."""
    try:
        async with asyncio.timeout_at(deadline):
            return await response.content.readany()
    except TimeoutError:
        return b""


def _payload(body: bytes) -> bytes | io.BytesIO:
    """The body for aiohttp, which writes a file in pieces."""
    return body if len(body) <= PIECE_BYTES else io.BytesIO(body)


def _job_id(request_id: str) -> str:
    return request_id.rpartition("-")[0]


def _default_param(request: GenerateRequest) -> str:
    return "messages" if request.messages is not None else "prompt"
