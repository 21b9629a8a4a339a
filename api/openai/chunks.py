"""Jobs' events as OpenAI's chunks: a stream of one job, or of several that are the prompts of one call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import orjson

from api.openai.completions import Dialect, role_of, total, usage_view
from api.openai.logprobs import CompletionLogprobsOf, chat_logprobs
from api.streaming.errors import CannotRestart, CutShort
from shared.domain.events import Event, EventType
from shared.domain.job import Job, Usage
from shared.runtime.aio import cancel_and_wait

DONE = b"data: [DONE]\n\n"


async def frames(
    face: Dialect,
    jobs: Sequence[Job],
    events: Sequence[AsyncIterator[list[Event]]],
    *,
    usage_in_the_end: bool = False,
    usage_always: bool = False,
) -> AsyncIterator[bytes]:
    """Jobs' events as `data:` frames, ending with `[DONE]`, or with an error frame where one failed.

    Raises:
        CutShort: after an error frame, where jobs have not ended.
    """
    head = _Head(face, jobs[0], usage_in_the_end=usage_in_the_end)
    chunks = [
        Chunks(head, face, job, first_index=position * job.request.sampling.n, usage_always=usage_always)
        for position, job in enumerate(jobs)
    ]
    open_streams = len(chunks)
    async with aclosing(_merged(events)) as batches:
        async for position, batch in batches:
            mine = chunks[position]
            made = b"".join(map(mine.of, batch))
            if mine.usage is not None:
                open_streams -= 1
                if not open_streams:
                    made += head.end([one.usage for one in chunks if one.usage is not None], chunks[0].fingerprint)
            if made:
                yield made
            if mine.broken and (left := [job for job, one in zip(jobs, chunks, strict=True) if not one.ended]):
                raise CutShort(left)
            if mine.broken or not open_streams:
                return


async def _merged(streams: Sequence[AsyncIterator[list[Event]]]) -> AsyncGenerator[tuple[int, list[Event]]]:
    """The batches of several streams as they come, each with its stream's place."""
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


class _Head:
    """What all chunks of a stream have in common, encoded once."""

    def __init__(self, face: Dialect, job: Job, *, usage_in_the_end: bool) -> None:
        common: dict[str, Any] = {
            "id": face.completion_id(job),
            "object": face.chunk_object,
            "created": int(job.created_at.timestamp()),
            "model": job.model,
        }
        self._before = b"data: " + orjson.dumps(common)[:-1] + b',"choices":['
        self._usage_in_the_end = usage_in_the_end
        self._after = b'],"usage":null}\n\n' if usage_in_the_end else b"]}\n\n"

    def chunk(self, choice: dict[str, Any]) -> bytes:
        return self._before + orjson.dumps(choice) + self._after

    def around_text(self, indices: range, *, chat: bool) -> tuple[list[bytes], bytes]:
        """What stands before and after the text of a chunk that has nothing else: before, for each choice."""
        opening = b'"delta":{"content":' if chat else b'"text":'
        cancel_and_wait = b'%b,"logprobs":null,"finish_reason":null}%b' % (b"}" if chat else b"", self._after)
        return [b'%b{"index":%d,%b' % (self._before, index, opening) for index in indices], cancel_and_wait

    def told(self, choice: dict[str, Any], usage: dict[str, Any]) -> bytes:
        """A chunk with the usage so far."""
        return b'%b%b],"usage":%b}\n\n' % (self._before, orjson.dumps(choice), orjson.dumps(usage))

    def last_of(self, choice: dict[str, Any], fingerprint: str | None) -> bytes:
        """A choice's last chunk, which has the fingerprint unless the usage chunk has it."""
        if self._usage_in_the_end or fingerprint is None:
            return self.chunk(choice)
        return b'%b%b],"system_fingerprint":%b}\n\n' % (self._before, orjson.dumps(choice), orjson.dumps(fingerprint))

    def end(self, usages: Sequence[Usage], fingerprint: str | None) -> bytes:
        """The chunk of the usage, where it is wanted, and the end."""
        if not self._usage_in_the_end:
            return DONE
        usage = orjson.dumps(usage_view(total(usages)).model_dump())
        return b'%b],"usage":%b,"system_fingerprint":%b}\n\n%b' % (self._before, usage, orjson.dumps(fingerprint), DONE)


class Chunks:
    """One job's chunks. `usage` is there once it has `ended` well; `broken`: it has told its reader that it cannot
    go on."""

    def __init__(
        self, head: _Head, face: Dialect, job: Job, *, first_index: int = 0, usage_always: bool = False
    ) -> None:
        self._head = head
        self._job = job
        self._plain, self._plain_end = head.around_text(
            range(first_index, first_index + job.request.sampling.n), chat=face.chat
        )
        self._chat = face.chat
        self._first_index = first_index
        self._top = job.request.logprobs
        self._offsets: dict[int, CompletionLogprobsOf] = {}
        self._usage_always = usage_always
        self._prompt_tokens: int | None = None
        self._tokens: dict[int, int] = {}
        self._opened = False
        self._sent_text = False
        self.fingerprint: str | None = None
        self.usage: Usage | None = None
        self.ended = self.broken = False

    def of(self, event: Event) -> bytes:
        """The frames of an event; none for some, nor after the stream is broken."""
        match event.type:
            case _ if self.broken:
                return b""
            case EventType.DELTA:
                self._sent_text = True
                payload = event.payload()
                if len(payload) == 2 and not self._usage_always:  # index and text: almost every chunk
                    return b"%b%b%b" % (self._plain[payload["index"]], orjson.dumps(payload["text"]), self._plain_end)
                if "tool_calls" in payload and self._chat:
                    return b"".join(map(self._delta, _one_call_each(payload)))
                return self._delta(payload)
            case EventType.STARTED:
                self.fingerprint = event.payload().get("fingerprint")
                # Where usage goes with each chunk, the opening one waits for the prompt's length.
                return b"" if self._usage_always or self._opened else self._open()
            case EventType.RESTARTED if self._sent_text:
                self.broken = True
                return _error(CannotRestart().message, "worker_lost")
            case EventType.RESTARTED:
                return b""
            case EventType.COMPLETED | EventType.INCOMPLETE:
                self.ended = True
                self.usage = Usage(**event.payload()["usage"])
                return b""
            case _:
                self.ended = self.broken = True
                error = event.payload()["error"]
                return _error(error["message"], error["code"])

    def _delta(self, payload: dict[str, Any]) -> bytes:
        if self._usage_always:
            return self._counted(payload)
        finish_reason = payload.get("finish_reason")
        choice = self._choice(payload, finish_reason)
        return self._head.last_of(choice, self.fingerprint) if finish_reason else self._head.chunk(choice)

    def _open(self) -> bytes:
        """The chunks that open a stream, one for each choice; none for plain completions."""
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
            **({"delta": _gained(payload)} if self._chat else {"text": payload["text"]}),
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        if self._top is not None and "logprobs" in payload:
            choice["logprobs"] = self._logprobs(index, payload["logprobs"], self._top)
        if finish_reason is not None:
            choice["stop_reason"] = payload.get("stop_reason")
        return choice

    def _logprobs(self, index: int, entries: list[dict[str, Any]], top: int) -> dict[str, Any]:
        if self._chat:
            return chat_logprobs(entries, top)
        if index not in self._offsets:
            self._offsets[index] = CompletionLogprobsOf(top)
        return self._offsets[index].of(entries)

    def _counted(self, payload: dict[str, Any]) -> bytes:
        """A chunk that tells the usage so far, as far as it is known."""
        self._prompt_tokens = payload.pop("prompt_tokens", self._prompt_tokens)
        index = self._first_index + payload["index"]
        opening = b"" if self._opened else self._open()
        self._tokens[index] = self._tokens.get(index, 0) + payload.pop("tokens", 0)
        return opening + self._frame(self._choice(payload, payload.get("finish_reason")), index)

    def _frame(self, choice: dict[str, Any], index: int) -> bytes:
        if not self._usage_always or self._prompt_tokens is None:
            return self._head.chunk(choice)
        made = self._tokens.get(index, 0)
        usage = {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self._prompt_tokens + made,
        }
        return self._head.told(choice, usage)


def _one_call_each(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """A delta with fragments of tool calls, one fragment a chunk and the end in its own, as OpenAI sends them.

    OpenAI's own stream helpers miss the end of a call that comes in one chunk with another, or with the finish.
    """
    calls = payload.pop("tool_calls")
    cancel_and_wait: dict[str, Any] = {
        name: payload.pop(name) for name in ("finish_reason", "stop_reason") if name in payload
    }
    silent: dict[str, Any] = {"index": payload["index"], "text": ""}
    parts = [{**(payload if place == 0 else silent), "tool_calls": [call]} for place, call in enumerate(calls)]
    return [*parts, {**silent, **cancel_and_wait}] if cancel_and_wait else parts


def _gained(payload: dict[str, Any]) -> dict[str, Any]:
    """What a chat's choice gained."""
    delta: dict[str, Any] = {}
    if reasoning := payload.get("reasoning"):
        delta["reasoning"] = reasoning
    if calls := payload.get("tool_calls"):
        delta["tool_calls"] = [_call(call) for call in calls]
    if payload["text"]:
        delta["content"] = payload["text"]
    return delta


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """A fragment of a tool call; the first of a call says what is called."""
    if "id" not in call and "name" not in call:
        return {"index": call["index"], "function": {"arguments": call["arguments"]}}
    return {
        "index": call["index"],
        "id": call.get("id"),
        "type": "function",
        "function": {"name": call.get("name"), "arguments": call["arguments"]},
    }


def _error(message: str, code: str) -> bytes:
    body = {"error": {"message": message, "type": "server_error", "param": None, "code": code}}
    return b"data: %s\n\n" % orjson.dumps(body)
