"""A simulated upstream: OpenAI's streaming API at a fixed rate, for tests and for load on the `openai` engine.

    python -m benchmarks.upstream --port 8901 --ttft-ms 20 --itl-ms 5

It is a bare protocol on uvloop, so that it costs little beside what it measures: one write a chunk, made of parts that
are ready. Answers are deterministic: token n is the number n and a space, and a prompt's tokens are its words and
one more. `GET /stats` tells how many requests are open, how many ended, and how many were left by their client.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import orjson
import uvloop

MAX_HEAD = 64 * 1024
JSON = b"application/json"


@dataclass(frozen=True, slots=True)
class Pace:
    """How the answers come: milliseconds to the first token and between tokens; limits in tokens."""

    ttft_ms: float = 20
    itl_ms: float = 5
    default_tokens: int = 64
    max_model_len: int = 8192


@dataclass(slots=True)
class Stats:
    """What this process has seen."""

    requests: int = 0
    open: int = 0
    finished: int = 0
    left: int = 0
    connections: int = 0


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True, slots=True)
class Asked:
    """One request's answer, worked out beforehand: it follows from the request alone."""

    chat: bool
    stream: bool
    include_usage: bool
    model: str
    prompt_tokens: int
    choices: int
    texts: list[str]
    finish_reason: str

    @property
    def usage(self) -> dict[str, Any]:
        made = len(self.texts) * self.choices
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self.prompt_tokens + made,
            "prompt_tokens_details": {"cached_tokens": 0},
        }


def text_of_tokens(count: int) -> str:
    """The text that so many tokens make."""
    return "".join(f"{position} " for position in range(count))


def parse(path: str, body: bytes, pace: Pace) -> Asked:
    """What a request asks for.

    Raises:
        Refused: it is not valid, or does not fit the context.
    """
    try:
        asked = orjson.loads(body)
        chat = path == "/v1/chat/completions"
        prompt = " ".join(str(item["content"]) for item in asked["messages"]) if chat else str(asked["prompt"])
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(400, f"The body is not a valid request: {error}") from error
    prompt_tokens = len(prompt.split()) + 1
    room = pace.max_model_len - prompt_tokens
    wanted = asked.get("max_tokens") or asked.get("max_completion_tokens")
    if room < 1 or (wanted or 0) > room:
        raise Refused(400, f"This model's maximum context length is {pace.max_model_len} tokens.")
    count = wanted or min(pace.default_tokens, room)
    texts, finish_reason = [f"{position} " for position in range(count)], "length"
    stops = asked.get("stop") or []
    whole = text_of_tokens(count)
    found = [at for stop in ([stops] if isinstance(stops, str) else stops) if (at := whole.find(stop)) >= 0]
    if found:
        texts, finish_reason, left = [], "stop", min(found)
        for position in range(count):
            if left <= 0:
                break
            texts.append(f"{position} "[:left])
            left -= len(texts[-1])
    return Asked(
        chat=chat,
        stream=bool(asked.get("stream")),
        include_usage=bool((asked.get("stream_options") or {}).get("include_usage")),
        model=str(asked.get("model", "")),
        prompt_tokens=prompt_tokens,
        choices=int(asked.get("n") or 1),
        texts=texts,
        finish_reason=finish_reason,
    )


class Upstream(asyncio.Protocol):
    """One connection: requests one after the other, kept alive."""

    _transport: asyncio.Transport

    def __init__(self, pace: Pace, stats: Stats) -> None:
        self._pace = pace
        self._stats = stats
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._answering = False
        self._paused = False
        self._timer: asyncio.Handle | None = None
        self._step: Callable[[], None] | None = None

    # From the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its bases
        self._stats.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._stats.connections -= 1
        if self._timer is not None:
            self._timer.cancel()
        if self._answering:
            self._answering = False
            self._stats.open -= 1
            self._stats.left += 1

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._step is not None:
            self._step()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._answering:
            self._next_request()

    # Requests

    def _next_request(self) -> None:
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            if len(head) > MAX_HEAD:
                self._transport.close()
            return
        request, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        method, _, target = request.partition(" ")
        path = target.partition(" ")[0].partition("?")[0]
        try:
            self._route(method, path, rest[:length])
        except Refused as error:
            body = {"error": {"message": str(error), "type": "invalid_request_error", "code": error.code}}
            self._answer(error.status, body)

    def _route(self, method: str, path: str, body: bytes) -> None:
        match method, path:
            case "GET", "/v1/models":
                self._answer(200, {"object": "list", "data": [{"id": "sim", "object": "model"}]})
            case "GET", "/stats":
                stats = self._stats
                self._answer(
                    200,
                    {
                        "requests": stats.requests,
                        "open": stats.open,
                        "finished": stats.finished,
                        "left": stats.left,
                        "connections": stats.connections,
                    },
                )
            case "POST", "/v1/chat/completions" | "/v1/completions":
                asked = parse(path, body, self._pace)
                self._stats.requests += 1
                self._stats.open += 1
                self._answering = True
                if asked.stream:
                    self._stream(asked)
                else:
                    seconds = (self._pace.ttft_ms + self._pace.itl_ms * len(asked.texts)) / 1000
                    self._timer = self._loop.call_later(seconds, self._whole, asked)
            case _:
                raise Refused(404, f"There is no {method} {path}.", "not_found")

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        content = orjson.dumps(body)
        self._transport.write(
            b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (status, len(content), content)
        )
        self._next_request()

    def _whole(self, asked: Asked) -> None:
        text = "".join(asked.texts)
        said = {"message": {"role": "assistant", "content": text}} if asked.chat else {"text": text}
        choices = [{"index": index, **said, "finish_reason": asked.finish_reason} for index in range(asked.choices)]
        kind = "chat.completion" if asked.chat else "text_completion"
        self._ended()
        self._answer(
            200,
            {"id": "up", "object": kind, "created": 0, "model": asked.model, "choices": choices, "usage": asked.usage},
        )

    def _stream(self, asked: Asked) -> None:
        """Write a chunk a token and choice, each with one write of parts that are ready."""
        kind = b"chat.completion.chunk" if asked.chat else b"text_completion"
        start = b'data: {"id":"up-%d","object":"%s","created":1700000000,"model":%s,"choices":[{"index":' % (
            self._stats.requests,
            kind,
            orjson.dumps(asked.model),
        )
        before, after = (b',"delta":{"content":"', b'"}') if asked.chat else (b',"text":"', b'"')
        starts = [start + b"%d" % index + before for index in range(asked.choices)]
        end = after + b',"logprobs":null,"finish_reason":null}]}\n\n'
        texts = [text.encode() for text in asked.texts]
        size = len(starts[0]) + len(end)
        itl_s = self._pace.itl_ms / 1000
        position = 0
        due = self._loop.time() + self._pace.ttft_ms / 1000

        def step() -> None:
            nonlocal position, due
            if self._transport.is_closing():
                return
            if self._paused:
                self._step = step  # the client reads too slowly; it goes on where it resumes
                return
            self._step = None
            if position < len(texts):
                text = texts[position]
                position += 1
                for one in starts:
                    self._transport.write(b"%x\r\n%b%b%b\r\n" % (size + len(text), one, text, end))
                due += itl_s
                self._timer = self._loop.call_at(due, step)
                return
            self._transport.write(self._tail(asked, start))
            self._ended()
            self._next_request()

        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        self._timer = self._loop.call_at(due, step)

    @staticmethod
    def _tail(asked: Asked, start: bytes) -> bytes:
        """Finish reasons, usage, [DONE] and the end of the body."""
        said = b'"delta":{}' if asked.chat else b'"text":""'
        events = [
            start + b'%d,%b,"finish_reason":"%b"}]}\n\n' % (index, said, asked.finish_reason.encode())
            for index in range(asked.choices)
        ]
        if asked.include_usage:
            usage = {"id": "up", "object": "chunk", "model": asked.model, "choices": [], "usage": asked.usage}
            events.append(b"data: " + orjson.dumps(usage) + b"\n\n")
        events.append(b"data: [DONE]\n\n")
        return b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events) + b"0\r\n\r\n"

    def _ended(self) -> None:
        self._answering = False
        self._stats.open -= 1
        self._stats.finished += 1


async def serve(pace: Pace, host: str, port: int, *, reuse_port: bool = False) -> tuple[asyncio.Server, Stats]:
    """Listen; port 0 takes a free one. Needs no uvloop, though the load tests run on it."""
    stats = Stats()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Upstream(pace, stats), host, port, reuse_port=reuse_port or None, backlog=4096
    )
    return server, stats


async def _run(pace: Pace, arguments: argparse.Namespace) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    server, _ = await serve(pace, arguments.host, arguments.port, reuse_port=arguments.processes > 1)
    address = server.sockets[0].getsockname()
    print(f"upstream {os.getpid()} ready at http://{address[0]}:{address[1]}/v1", flush=True)
    await stopped.wait()
    server.close()


def _process(pace: Pace, arguments: argparse.Namespace) -> None:
    uvloop.run(_run(pace, arguments))


def main() -> int:
    usual = Pace()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.upstream", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8901)
    parser.add_argument("--ttft-ms", type=float, default=usual.ttft_ms)
    parser.add_argument("--itl-ms", type=float, default=usual.itl_ms, help="0: as fast as it goes")
    parser.add_argument("--default-tokens", type=int, default=usual.default_tokens)
    parser.add_argument("--max-model-len", type=int, default=usual.max_model_len)
    parser.add_argument("--processes", type=int, default=1, help="that share the port; /stats is one process's")
    arguments = parser.parse_args()
    pace = Pace(arguments.ttft_ms, arguments.itl_ms, arguments.default_tokens, arguments.max_model_len)
    if arguments.processes > 1 and not hasattr(socket, "SO_REUSEPORT"):
        parser.error("--processes needs SO_REUSEPORT")
    others = [
        multiprocessing.get_context("spawn").Process(target=_process, args=(pace, arguments), daemon=True)
        for _ in range(arguments.processes - 1)
    ]
    for process in others:
        process.start()
    _process(pace, arguments)
    for process in others:
        process.terminate()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
