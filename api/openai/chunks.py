"""Converts jobs' events to OpenAI's chunks: one stream for one job, or for the jobs of a call with several prompts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from decimal import Decimal
from typing import Any

import orjson

from api.http.errors import render_failure
from api.openai.completions import Dialect, extra_content, reasoning_details, role_of, usage_body
from api.openai.error_params import rename_failure
from api.openai.logprobs import CompletionLogprobsBuilder, chat_logprobs
from api.streaming.errors import CannotRestart, StreamAborted
from shared.domain.errors import ErrorCode
from shared.domain.events import Event, EventType
from shared.domain.job import Failure, Job, Usage
from shared.domain.opaque import TOOL_CALL, decode_all
from shared.runtime.aio import cancel_and_wait

DONE = b"data: [DONE]\n\n"


async def frames(
    dialect: Dialect,
    jobs: Sequence[Job],
    events: Sequence[AsyncIterator[list[Event]]],
    *,
    include_usage: bool = False,
    continuous_usage: bool = False,
    cost: Callable[[], Awaitable[Decimal | None]] | None = None,
) -> AsyncIterator[bytes]:
    """Convert jobs' events to `data:` frames. The last one is `[DONE]`, or an error frame if a job failed.

    `cost` is awaited once all jobs have ended: what they are charged, to be added to the usage.

    Each frame names the model that answers. So while another one may take over a job, the first frame waits for output,
    or for a keepalive.

    Raises:
        StreamAborted: after an error frame, if jobs have not ended.
    """

    def encoder(model: str) -> _Encoder:
        return _Encoder(dialect, jobs[0], model, include_usage=include_usage)

    chunks = [
        Chunks(encoder, dialect, job, first_index=position * job.request.sampling.n, continuous_usage=continuous_usage)
        for position, job in enumerate(jobs)
    ]
    open_streams = len(chunks)
    async with aclosing(_merged(events)) as batches:
        async for position, batch in batches:
            current = chunks[position]
            encoded = b"".join(map(current.convert, batch))
            if not batch and position == next(index for index, item in enumerate(chunks) if not item.ended):
                encoded = current.keepalive()  # one is enough for all jobs
            if current.usage is not None:
                open_streams -= 1
                if not open_streams:
                    usage = None
                    if include_usage:
                        charged = await cost() if cost is not None else None
                        usages = [item.usage for item in chunks if item.usage is not None]
                        usage = usage_body(usages, charged, include_cost=cost is not None)
                    encoded += chunks[0].encoder.end(usage, chunks[0].fingerprint)
            if encoded:
                yield encoded
            if current.aborted:
                if unfinished := [job for job, item in zip(jobs, chunks, strict=True) if not item.ended]:
                    raise StreamAborted(unfinished)
                return
            if not open_streams:
                return


async def _merged(streams: Sequence[AsyncIterator[list[Event]]]) -> AsyncGenerator[tuple[int, list[Event]]]:
    """Yield the batches of several streams as they arrive, each with the index of its stream."""
    if len(streams) == 1:
        async for batch in streams[0]:
            yield 0, batch
        return
    queue: asyncio.Queue[tuple[int, list[Event]]] = asyncio.Queue(len(streams))

    async def read(position: int) -> None:
        async for batch in streams[position]:
            await queue.put((position, batch))

    reading = asyncio.gather(*(read(position) for position in range(len(streams))))
    try:
        while not (reading.done() and queue.empty()):
            getting = asyncio.ensure_future(queue.get())
            await asyncio.wait((getting, reading), return_when=asyncio.FIRST_COMPLETED)
            if getting.done() or not queue.empty():
                yield await getting
            else:
                getting.cancel()
        await reading
    finally:
        await cancel_and_wait(reading)


class _Encoder:
    """Encodes chunks. The fields that all chunks of a stream share are encoded once."""

    def __init__(self, dialect: Dialect, job: Job, model: str, *, include_usage: bool) -> None:
        common: dict[str, Any] = {
            "id": dialect.completion_id(job),
            "object": dialect.chunk_object,
            "created": int(job.created_at.timestamp()),
            "model": model,
        }
        self._before = b"data: " + orjson.dumps(common)[:-1] + b',"choices":['
        self._include_usage = include_usage
        self._after = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"

    def chunk(self, choice: dict[str, Any]) -> bytes:
        return self._before + _json(choice) + self._after

    def around_text(self, indices: range, *, chat: bool) -> tuple[list[bytes], bytes]:
        """The bytes before the text, for each choice, and after it, for chunks that have only text."""
        opening = b'"delta":{"content":' if chat else b'"text":'
        closing = b'%b,"logprobs":null,"finish_reason":null}%b' % (b"}" if chat else b"", self._after)
        return [b'%b{"index":%d,%b' % (self._before, index, opening) for index in indices], closing

    def with_usage(self, choice: dict[str, Any], usage: dict[str, Any]) -> bytes:
        """Encode a chunk with the usage so far."""
        return b'%b%b],"usage":%b}\n\n' % (self._before, _json(choice), orjson.dumps(usage))

    def last_of(self, choice: dict[str, Any], fingerprint: str | None) -> bytes:
        """Encode a choice's last chunk. It has the fingerprint, unless the usage chunk has it."""
        if self._include_usage or fingerprint is None:
            return self.chunk(choice)
        return b'%b%b],"system_fingerprint":%b}\n\n' % (self._before, _json(choice), orjson.dumps(fingerprint))

    def end(self, usage: dict[str, Any] | None, fingerprint: str | None) -> bytes:
        """Encode the usage chunk, if there is one, and `[DONE]`."""
        if usage is None:
            return DONE
        encoded = (orjson.dumps(usage), orjson.dumps(fingerprint))
        return b'%b],"usage":%b,"system_fingerprint":%b}\n\n%b' % (self._before, *encoded, DONE)


def _json(choice: dict[str, Any]) -> bytes:
    return orjson.dumps(choice, default=list)  # log probabilities are a `Mapped` sequence


class Chunks:
    """Converts one job's events. `usage` is set once the job has succeeded; `aborted` once an error has been sent."""

    def __init__(
        self,
        encoder_of: Callable[[str], _Encoder],
        dialect: Dialect,
        job: Job,
        *,
        first_index: int = 0,
        continuous_usage: bool = False,
    ) -> None:
        """`encoder_of` returns the encoder of a model's chunks."""
        self._encoder_of = encoder_of
        self._job = job
        self._chat = dialect.chat
        # While another model may take over, the opening chunk is delayed until one has generated something.
        self._may_move = job.decisions.may_move and not job.status.terminal
        self._first_index = first_index
        self._top = job.request.logprobs
        self._offsets: dict[int, CompletionLogprobsBuilder] = {}
        self._continuous_usage = continuous_usage
        self._prompt_tokens: int | None = None
        self._tokens: dict[int, int] = {}
        # By choice: the number of details of the reasoning, and of each call by its id.
        self._details: dict[int, int] = {}
        self._call_numbers: dict[tuple[int, str | None], int] = {}
        self._opened = False
        self._sent_text = False
        self.fingerprint: str | None = None
        self.usage: Usage | None = None
        self.ended = self.aborted = False
        self._use(job.model)

    def _use(self, model: str) -> None:
        """Name this model in the chunks that follow."""
        self.encoder = self._encoder_of(model)
        indices = range(self._first_index, self._first_index + self._job.request.sampling.n)
        self._plain, self._plain_end = self.encoder.around_text(indices, chat=self._chat)

    def convert(self, event: Event) -> bytes:
        """Convert an event to frames; some events, and all after an abort, have none."""
        match event.type:
            case _ if self.aborted:
                return b""
            case EventType.DELTA:
                if self._may_move:
                    self._may_move = False
                    return self._begin_output() + self.convert(event)
                self._sent_text = True
                payload = event.payload()
                if len(payload) == 2 and not self._continuous_usage:  # index and text: almost every chunk
                    return b"%b%b%b" % (self._plain[payload["index"]], orjson.dumps(payload["text"]), self._plain_end)
                if "opaque" in payload:
                    self._take_parts(payload)
                if "tool_calls" in payload and self._chat:
                    for call in payload["tool_calls"]:
                        if "id" in call:
                            self._call_numbers[payload["index"], call["id"]] = call["index"]
                    return b"".join(map(self._delta, _split_calls(payload)))
                return self._delta(payload)
            case EventType.STARTED:
                payload = event.payload()
                self.fingerprint = payload.get("fingerprint")
                if self._may_move:
                    self._use(payload.get("model", self._job.model))
                    return b""
                # With continuous usage, the opening chunk is delayed until the number of prompt tokens is known.
                return self._begin_output()
            case EventType.RESTARTED if self._sent_text:
                self.aborted = True
                return _error(Failure(ErrorCode.WORKER_LOST, CannotRestart().message))
            case EventType.RESTARTED:
                return b""
            case EventType.COMPLETED | EventType.INCOMPLETE:
                self.ended = True
                self.usage = Usage.of(event.payload()["usage"])
                return b""
            case _:
                self.ended = self.aborted = True
                return _error(rename_failure(self._job, Failure.of(event.payload()["error"])))

    def keepalive(self) -> bytes:
        """Encode a chunk without content, for a stream that is idle.

        Clients may index `choices[0]`, so there is a choice; its delta is empty, as in the last chunk of a choice. The
        first chunk of a chat has the role, because some clients require it there.
        """
        if self._chat and not (self._opened or self._continuous_usage):
            return self._open()
        content: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        return self.encoder.chunk({"index": self._first_index, **content, "logprobs": None, "finish_reason": None})

    def _begin_output(self) -> bytes:
        return b"" if self._continuous_usage or self._opened else self._open()

    def _take_parts(self, payload: dict[str, Any]) -> None:
        """Convert a delta's opaque parts: to details of the reasoning, and to extra content of calls."""
        index, others = payload["index"], []
        calls: list[dict[str, Any]] = payload.get("tool_calls", [])
        for part in decode_all(payload.pop("opaque")):
            if part.kind != TOOL_CALL:
                others.append(part)
            elif (call := next((call for call in calls if call.get("id") == part.call_id), None)) is not None:
                call |= extra_content(part)
            elif (number := self._call_numbers.get((index, part.call_id))) is not None:
                calls.append({"index": number, "arguments": "", **extra_content(part)})
        if calls:
            payload["tool_calls"] = calls
        if others:
            details = self._details.get(index, 0)
            payload["reasoning_details"] = reasoning_details(others, details)
            self._details[index] = details + len(others)

    def _delta(self, payload: dict[str, Any]) -> bytes:
        if self._continuous_usage:
            return self._delta_with_usage(payload)
        finish_reason = payload.get("finish_reason")
        choice = self._choice(payload, finish_reason)
        return self.encoder.last_of(choice, self.fingerprint) if finish_reason else self.encoder.chunk(choice)

    def _open(self) -> bytes:
        """Encode the opening chunks, one per choice; plain completions have none."""
        self._opened = True
        if not self._chat:
            return b""
        role = role_of(self._job)
        return b"".join(
            self._frame(
                {"index": index, "delta": {"role": role, "content": ""}, "logprobs": None, "finish_reason": None}, index
            )
            for index in range(self._first_index, self._first_index + self._job.request.sampling.n)
        )

    def _choice(self, payload: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        index = self._first_index + payload["index"]
        choice: dict[str, Any] = {
            "index": index,
            **({"delta": _chat_delta(payload)} if self._chat else {"text": payload["text"]}),
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        if self._top is not None and "logprobs" in payload:
            choice["logprobs"] = self._logprobs(index, payload["logprobs"], self._top)
        if finish_reason is not None:
            choice["stop_reason"] = payload.get("stop_reason")
        return choice

    def _logprobs(self, index: int, entries: list[Any], top: int) -> dict[str, Any]:
        if self._chat:
            return chat_logprobs(entries, top)
        if index not in self._offsets:
            self._offsets[index] = CompletionLogprobsBuilder(top)
        return self._offsets[index].build(entries)

    def _delta_with_usage(self, payload: dict[str, Any]) -> bytes:
        """Encode a chunk with the usage so far, if known."""
        self._prompt_tokens = payload.pop("prompt_tokens", self._prompt_tokens)
        index = self._first_index + payload["index"]
        opening = b"" if self._opened else self._open()
        self._tokens[index] = self._tokens.get(index, 0) + payload.pop("tokens", 0)
        return opening + self._frame(self._choice(payload, payload.get("finish_reason")), index)

    def _frame(self, choice: dict[str, Any], index: int) -> bytes:
        if not self._continuous_usage or self._prompt_tokens is None:
            return self.encoder.chunk(choice)
        tokens = self._tokens.get(index, 0)
        usage = {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self._prompt_tokens + tokens,
        }
        return self.encoder.with_usage(choice, usage)


def _split_calls(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """Split a delta with fragments of tool calls: one fragment per chunk and the finish in its own, as at OpenAI.

    OpenAI's stream helpers miss the end of a call that shares a chunk with another call or with the finish.
    """
    calls = payload.pop("tool_calls")
    finish: dict[str, Any] = {name: payload.pop(name) for name in ("finish_reason", "stop_reason") if name in payload}
    empty: dict[str, Any] = {"index": payload["index"], "text": ""}
    parts = [{**(payload if position == 0 else empty), "tool_calls": [call]} for position, call in enumerate(calls)]
    return [*parts, {**empty, **finish}] if finish else parts


def _chat_delta(payload: dict[str, Any]) -> dict[str, Any]:
    """The `delta` of a chat chunk."""
    delta: dict[str, Any] = {}
    if reasoning := payload.get("reasoning"):
        delta["reasoning"] = reasoning
    if details := payload.get("reasoning_details"):
        delta["reasoning_details"] = details
    if calls := payload.get("tool_calls"):
        delta["tool_calls"] = [_call(call) for call in calls]
    if payload["text"]:
        delta["content"] = payload["text"]
    return delta


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """Convert a fragment of a tool call; the first fragment of a call has its id and name."""
    extra = {"extra_content": call["extra_content"]} if "extra_content" in call else {}
    if "id" not in call and "name" not in call:
        return {"index": call["index"], "function": {"arguments": call["arguments"]}, **extra}
    return {
        "index": call["index"],
        "id": call.get("id"),
        "type": "function",
        "function": {"name": call.get("name"), "arguments": call["arguments"]},
        **extra,
    }


def _error(failure: Failure) -> bytes:
    return b"data: %b\n\n" % bytes(render_failure(failure).body)
