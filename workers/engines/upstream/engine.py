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
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from typing import Any

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
    CannotContinue,
    Engine,
    EngineError,
    EngineStats,
    Prior,
    PromptInfo,
    ReportedContext,
    RunEnded,
    UpstreamError,
)
from workers.engines.flush_interval import flush_interval_s
from workers.engines.info import info_of
from workers.engines.resume import Resume
from workers.engines.upstream.answer_limit import AnswerLimit
from workers.engines.upstream.context_length import ContextLength
from workers.engines.upstream.endpoints import Endpoint, Endpoints
from workers.engines.upstream.error_body import parse_error, request_id_of
from workers.engines.upstream.errors import (
    FORBIDDEN,
    KEY_REFUSED,
    NO_CREDIT,
    TRANSIENT,
    ErrorBody,
    RunLost,
    TransientError,
    connection_error,
    ended_early,
    reported_error,
    status_error,
)
from workers.engines.upstream.exchange import Call, Exchange
from workers.engines.upstream.gate import UpstreamGate
from workers.engines.upstream.health_check import start_health_checks
from workers.engines.upstream.job_requests import PIECE_BYTES, JobRequests
from workers.engines.upstream.read_coalescing import ReadCoalescer
from workers.engines.upstream.recovery import Recovery
from workers.engines.upstream.redaction import redact, without_secrets
from workers.engines.upstream.redirects import MAX_REDIRECTS, redirected
from workers.engines.upstream.refused_parameters import REFUSED, RefusedParameters, replaced
from workers.engines.upstream.session import Sending, open_session, read_error, read_tail, send_once
from workers.engines.upstream.stall import StallTimer, stall_timeout_s

logger = logging.getLogger(__name__)

# Longest wait for more output, the usage, or the end of a stream whose choices have their finish reasons: some servers
# leave it open.
TRAILER_S = 5.0
# Any other status of the client's errors means that the request has ended, or that the upstream does not know it.
MAY_CANCEL_LATER = (KEY_REFUSED, FORBIDDEN, NO_CREDIT, *TRANSIENT)
# The member of an `UpstreamState`'s data with the API of the run.
_API = "api"
# The APIs whose states have no mark if the previous version wrote them. Remove this after the first release that marks
# the states of all APIs.
_FORMERLY_UNMARKED = ("replicate", "runpod")


class UpstreamEngine(ABC):
    """Relays up to `slots` requests at the same time, each on its own connection."""

    # The API whose requests run on without their connection, so that a later attempt can resume them. Their states are
    # marked with it. None: a request ends with its connection.
    run_api: str | None = None

    _session: aiohttp.ClientSession
    _endpoints: Endpoints

    def __init__(self, model: UpstreamModel, metrics: Metrics) -> None:
        self.fingerprint = model.fingerprint
        self._info = info_of(model)
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
        endpoint = self._endpoints.canceller(state) if self._is_of_api(state) else None
        if endpoint is None:
            # A worker with another version of models.yaml may be able to.
            raise UpstreamError("The upstream's request is of another API or endpoint.")
        await self._send_cancel(self.cancel_call(state.id), endpoint)

    def _is_own(self, state: UpstreamState) -> bool:
        """Whether a run is one of this API, at an endpoint that the model's entry still has."""
        return self._is_of_api(state) and self._endpoints.owner(state) is not None

    def _is_of_api(self, state: UpstreamState) -> bool:
        api = state.data.get(_API)
        if api is None and self.run_api in _FORMERLY_UNMARKED:
            api = self.run_api
        return self.run_api is not None and api == self.run_api

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

    def stats(self) -> EngineStats:
        reported, info, context, source = None, self._info, self._context, self._model.context_source
        if context is not None and source is not None and context.read_at is not None:
            reported = ReportedContext(source, context.tokens, context.read_at, context.use)
            info = info.model_copy(update={"context": context.tokens})
        return EngineStats(self._requests, endpoints=self._endpoints.states, context=reported, info=info)

    async def generate(
        self, request_id: str, request: GenerateRequest, prior: Prior = NO_PRIOR
    ) -> AsyncGenerator[Delta | PromptInfo | RunEnded | UpstreamState | Usage, None]:
        prior = self._resumable(prior)
        length = self._model.max_model_len
        if self._context is not None:
            self._context.use()
            length = self._context.tokens
        job = JobRequests(
            id=request_id,
            request=request,
            prior=prior,
            endpoint=self._endpoints.owner(prior.upstream) or self._endpoints.choose(),
            limit=AnswerLimit(request, length),
        )
        self._requests += 1
        if prior.upstream is not None:
            self._metrics.upstream_resumes.labels(self._label, "attempt").inc()
        try:
            while True:
                if job.call is None:
                    job.begin(await self.exchange(request, job.prior))
                reply, failure = job.reply, ended_early()
                try:
                    while (call := job.call) is not None:
                        if call.delay_s:
                            await asyncio.sleep(call.delay_s)
                        parameters, body = self._encoded(call, job.replacements)
                        job.sending = Sending()
                        sent = self._send(call, body, job.endpoint, job.sending)
                        async with sent as response, aclosing(self._read(job, response)) as reads:
                            if not await self._accepted(job, response, parameters, body):
                                continue
                            async for data in reads:
                                slice_ = TimeSlice()
                                for item in job.parse(data):
                                    if item is not None:
                                        yield self._emitted(job, item)
                                    if slice_.over:
                                        await slice_.give_way()
                            if job.runs_on and job.exchange.has_ended and not reply.finished:
                                yield RunEnded()
                            await self._finish(job, response, body)
                        if reply.done or reply.finished:
                            break
                        if (next_call := job.exchange.next()) is not None:
                            job.failures = 0
                        job.call = next_call
                except RunLost as lost:
                    self._send_again(job, lost)
                    continue
                except TransientError as error:
                    failure = error
                except (aiohttp.ClientError, TimeoutError) as error:
                    if self.run_api is None and not job.sent_again and job.sending.is_stale(error):
                        job.sent_again = True
                        continue
                    failure = connection_error(error)
                    self._metrics.upstream_failures.labels(self._label, failure.reason.value).inc()
                if reply.finished:  # a failure after the last finish reason affects only the usage
                    for rest in reply.end():
                        if rest is not None:
                            yield rest
                    break
                logger.warning("call=%s upstream failure %d: %s", request_id, job.failures + 1, failure.details)
                retries = self._metrics.upstream_retries.labels(self._label)
                recovery = Recovery(self.gate, self._endpoints, self._options, retries.inc)
                delay_s = recovery.after(job, failure)
                if job.call is not None:
                    self._metrics.upstream_resumes.labels(self._label, "connection").inc()
                if delay_s:
                    await asyncio.sleep(delay_s)
        finally:
            self._requests -= 1
        if (usage := reply.usage) is not None:
            yield usage

    async def _accepted(
        self, job: JobRequests, response: aiohttp.ClientResponse, parameters: dict[str, Any], body: bytes
    ) -> bool:
        """Whether a response has output to read. Otherwise another request, which `job.call` is now, replaces its one.

        Raises:
            InvalidRequest, EngineError, TransientError: it is an error.
        """
        status, job.sending.answered = response.status, True
        self._metrics.upstream_requests.labels(self._label, str(status)).inc()
        if 200 <= status < 300:
            self._refused.remember(job.replacements)
            job.exchange.accepted(parameters)
            if job.runs_on:
                self._answered(job)
            job.finished_at, job.trailer_s = 0.0, TRAILER_S
            return True
        assert job.call is not None
        content = await read_error(response)
        if (there := self._redirected(job, response)) is not None:
            job.call = there
        elif refused := self._refused_by(status, content, parameters, job.replacements):
            job.replacements |= refused
        elif (other := job.exchange.instead(status)) is not None:
            job.call = other
        else:
            error = self._status_error(job, response, content, body)
            if isinstance(error, InvalidRequest):
                self.gate.succeeded()  # it works: it has read the request
            raise error
        return False

    async def _read(self, job: JobRequests, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
        """The data of a response as it comes, then nothing if the answer has not ended with it.

        Raises:
            UpstreamError: the answer is too long.
            TimeoutError: there was no output for too long.
        """
        reply, exchange = job.reply, job.exchange
        stall = StallTimer(self._stall_timeout_s)
        while not (reply.done or exchange.over):
            if reply.finished:
                job.finished_at = job.finished_at or asyncio.get_running_loop().time()
                data = await _read_until(response, job.finished_at + job.trailer_s)
            else:
                data = await response.content.readany()
            if not data:
                break
            job.limit.read(len(data), repeats=exchange.repeats)
            job.has_output = False
            yield data
            if not reply.done:
                stall.read(has_output=job.has_output)
            if reply.begun and not reply.done:
                await self._delay_read(response)
        if not reply.done:
            yield b""

    def _emitted(self, job: JobRequests, item: Delta | UpstreamState) -> Delta | UpstreamState:
        """Record output, and mark the state of a run with its API and endpoint."""
        job.has_output = True
        if job.finished_at:  # more than one chunk has a finish reason
            job.finished_at, job.trailer_s = 0.0, max(TRAILER_S, self._options.read_timeout_s)
        if not job.answered:
            self._answered(job)
        if isinstance(item, UpstreamState):
            job.runs_on = True
            return self._endpoints.mark(replace(item, data={**item.data, _API: self.run_api}), job.endpoint)
        job.failures = 0
        if job.exchange.repeats:
            job.limit.emitted(item)
        return item

    def _answered(self, job: JobRequests) -> None:
        """Record that the upstream works, once."""
        if not job.answered:
            job.answered = True
            self.gate.succeeded()

    async def _finish(self, job: JobRequests, response: aiohttp.ClientResponse, body: bytes) -> None:
        """Check how a response has ended.

        Raises:
            InvalidRequest, EngineError, TransientError: the upstream reported it in the answer.
        """
        reply = job.reply
        if job.endpoint.health.failures and reply.finished:
            self._endpoints.succeeded(job.endpoint)
        if reply.failure is not None and not reply.finished:
            raise self._reply_error(job, reply.failure, body)
        if reply.done and not job.exchange.leaves_early:
            await read_tail(response)

    def _send_again(self, job: JobRequests, lost: RunLost) -> None:
        """Let a new request follow one that the upstream has forgotten.

        Raises:
            CannotContinue: it had output.
            RunLost: the new one was lost too.
        """
        if job.prior.deltas or job.reply.begun:
            raise CannotContinue(lost.message) from lost
        if job.recreated:
            raise lost
        logger.warning("call=%s %s; the request is sent again", job.id, lost.message.rstrip("."))
        self._metrics.upstream_retries.labels(self._label).inc()
        job.call, job.prior, job.recreated = None, NO_PRIOR, True

    def _encoded(self, call: Call, replacements: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], bytes]:
        """The parameters of a call, without those that the upstream refuses, and their encoding."""
        if call.body is None:
            return {}, b""
        parameters = self._refused.accepted(dict(call.body), self.optional(call.body))
        if replacements:
            parameters = replaced(parameters, {name: replacements[name] for name in replacements if name in parameters})
        return parameters, orjson.dumps(parameters)

    async def _send_cancel(self, call: Call, endpoint: Endpoint) -> None:
        """Send the call that cancels a request. Returns if the upstream has cancelled it, or refuses to for good.

        Raises:
            UpstreamError: it may succeed later.
            aiohttp.ClientError, TimeoutError: there is no response.
        """
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

    def _redirected(self, job: JobRequests, response: aiohttp.ClientResponse) -> Call | None:
        """The request that follows a redirect; None if it may not be followed."""
        if not self._model.follows_redirects or job.redirects >= MAX_REDIRECTS or job.call is None:
            return None
        base_url = job.endpoint.base_url
        there = redirected(job.call, response.status, response.headers, str(response.url), base_url)
        job.redirects += there is not None
        return there

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
        self, job: JobRequests, response: aiohttp.ClientResponse, content: bytes, sent: bytes
    ) -> Exception:
        status = response.status
        error = self.error_body(content)
        error = replace(error, request_id=error.request_id or request_id_of(response.headers))
        body = self._for_client(job.id, f"HTTP {status}", error, sent)
        if self.is_classified(content) and status not in (KEY_REFUSED, NO_CREDIT, FORBIDDEN):
            return reported_error(body, _default_param(job.request))
        return status_error(status, response.headers, body, default_param=_default_param(job.request))

    def _reply_error(self, job: JobRequests, failure: EngineError | ErrorBody, sent: bytes) -> Exception:
        """The error for a failure that the upstream reported after it had begun its response."""
        if isinstance(failure, EngineError):
            return failure
        error = "an error in the answer"
        return reported_error(self._for_client(job.id, error, failure, sent), _default_param(job.request))

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


def _default_param(request: GenerateRequest) -> str:
    return "messages" if request.messages is not None else "prompt"
