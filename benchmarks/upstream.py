"""A simulated upstream: OpenAI's streaming API at a fixed rate, for tests and load on the `openai` engine.

    python -m benchmarks.upstream --port 8901 --ttft-ms 20 --itl-ms 5

It is a plain asyncio protocol, so that it uses little CPU next to the system under test: one write per chunk, from
precomputed parts. Responses are deterministic: token n is the number n and a space, and a prompt has one token more
than words. `GET /stats` returns the number of requests: open, finished, and abandoned by their client (`left`).
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
    """Response timing, in milliseconds to the first token and between tokens, and limits in tokens."""

    ttft_ms: float = 20
    itl_ms: float = 5
    default_tokens: int = 64
    max_model_len: int = 8192


@dataclass(slots=True)
class Stats:
    """Counters of this process."""

    requests: int = 0
    open: int = 0
    finished: int = 0
    left: int = 0
    connections: int = 0


class Refused(Exception):
    """A request that gets an error response."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A parsed request with its complete response."""

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
        completion_tokens = len(self.texts) * self.choices
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
        }


def text_of_tokens(count: int) -> str:
    """Return the text of `count` tokens."""
    return "".join(f"{position} " for position in range(count))


def parse(path: str, body: bytes, pace: Pace) -> ParsedRequest:
    """Parse a request and compute its response.

    Raises:
        Refused: The request is invalid or does not fit the context.
    """
    try:
        fields = orjson.loads(body)
        chat = path == "/v1/chat/completions"
        prompt = " ".join(str(item["content"]) for item in fields["messages"]) if chat else str(fields["prompt"])
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(400, f"The body is not a valid request: {error}") from error
    prompt_tokens = len(prompt.split()) + 1
    room = pace.max_model_len - prompt_tokens
    wanted = fields.get("max_tokens") or fields.get("max_completion_tokens")
    if room < 1 or (wanted or 0) > room:
        raise Refused(400, f"This model's maximum context length is {pace.max_model_len} tokens.")
    count = wanted or min(pace.default_tokens, room)
    texts, finish_reason = [f"{position} " for position in range(count)], "length"
    stops = fields.get("stop") or []
    full_text = text_of_tokens(count)
    found = [at for stop in ([stops] if isinstance(stops, str) else stops) if (at := full_text.find(stop)) >= 0]
    if found:
        texts, finish_reason, left = [], "stop", min(found)
        for position in range(count):
            if left <= 0:
                break
            texts.append(f"{position} "[:left])
            left -= len(texts[-1])
    return ParsedRequest(
        chat=chat,
        stream=bool(fields.get("stream")),
        include_usage=bool((fields.get("stream_options") or {}).get("include_usage")),
        model=str(fields.get("model", "")),
        prompt_tokens=prompt_tokens,
        choices=int(fields.get("n") or 1),
        texts=texts,
        finish_reason=finish_reason,
    )


class Upstream(asyncio.Protocol):
    """One keep-alive connection, serving requests in sequence."""

    _transport: asyncio.Transport

    def __init__(self, pace: Pace, stats: Stats) -> None:
        self._pace = pace
        self._stats = stats
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._responding = False
        self._paused = False
        self._timer: asyncio.Handle | None = None
        self._step: Callable[[], None] | None = None

    # From the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports do not inherit from it
        self._stats.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._stats.connections -= 1
        if self._timer is not None:
            self._timer.cancel()
        if self._responding:
            self._responding = False
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
        if not self._responding:
            self._next_request()

    # Requests

    def _next_request(self) -> None:
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            if len(head) > MAX_HEAD:
                self._transport.close()
            return
        start_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        method, _, target = start_line.partition(" ")
        path = target.partition(" ")[0].partition("?")[0]
        try:
            self._route(method, path, rest[:length])
        except Refused as error:
            body = {"error": {"message": str(error), "type": "invalid_request_error", "code": error.code}}
            self._respond(error.status, body)

    def _route(self, method: str, path: str, body: bytes) -> None:
        match method, path:
            case "GET", "/v1/models":
                self._respond(200, {"object": "list", "data": [{"id": "sim", "object": "model"}]})
            case "GET", "/stats":
                stats = self._stats
                self._respond(
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
                request = parse(path, body, self._pace)
                self._stats.requests += 1
                self._stats.open += 1
                self._responding = True
                if request.stream:
                    self._stream(request)
                else:
                    seconds = (self._pace.ttft_ms + self._pace.itl_ms * len(request.texts)) / 1000
                    self._timer = self._loop.call_later(seconds, self._send_completion, request)
            case _:
                raise Refused(404, f"Not found: {method} {path}.", "not_found")

    def _respond(self, status: int, body: dict[str, Any]) -> None:
        content = orjson.dumps(body)
        self._transport.write(
            b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (status, len(content), content)
        )
        self._next_request()

    def _send_completion(self, request: ParsedRequest) -> None:
        text = "".join(request.texts)
        content = {"message": {"role": "assistant", "content": text}} if request.chat else {"text": text}
        choices = [
            {"index": index, **content, "finish_reason": request.finish_reason} for index in range(request.choices)
        ]
        kind = "chat.completion" if request.chat else "text_completion"
        self._finish()
        self._respond(
            200,
            {
                "id": "up",
                "object": kind,
                "created": 0,
                "model": request.model,
                "choices": choices,
                "usage": request.usage,
            },
        )

    def _stream(self, request: ParsedRequest) -> None:
        """Stream one chunk per token and choice, each in one write of precomputed parts."""
        kind = b"chat.completion.chunk" if request.chat else b"text_completion"
        start = b'data: {"id":"up-%d","object":"%s","created":1700000000,"model":%s,"choices":[{"index":' % (
            self._stats.requests,
            kind,
            orjson.dumps(request.model),
        )
        before, after = (b',"delta":{"content":"', b'"}') if request.chat else (b',"text":"', b'"')
        starts = [start + b"%d" % index + before for index in range(request.choices)]
        end = after + b',"logprobs":null,"finish_reason":null}]}\n\n'
        texts = [text.encode() for text in request.texts]
        size = len(starts[0]) + len(end)
        itl_s = self._pace.itl_ms / 1000
        position = 0
        due = self._loop.time() + self._pace.ttft_ms / 1000

        def step() -> None:
            nonlocal position, due
            if self._transport.is_closing():
                return
            if self._paused:
                self._step = step  # the client reads too slowly; `resume_writing` continues
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
            self._transport.write(self._tail(request, start))
            self._finish()
            self._next_request()

        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        self._timer = self._loop.call_at(due, step)

    @staticmethod
    def _tail(request: ParsedRequest, start: bytes) -> bytes:
        """Return the finish reasons, usage, [DONE] and the end of the body."""
        content = b'"delta":{}' if request.chat else b'"text":""'
        events = [
            start + b'%d,%b,"finish_reason":"%b"}]}\n\n' % (index, content, request.finish_reason.encode())
            for index in range(request.choices)
        ]
        if request.include_usage:
            usage = {"id": "up", "object": "chunk", "model": request.model, "choices": [], "usage": request.usage}
            events.append(b"data: " + orjson.dumps(usage) + b"\n\n")
        events.append(b"data: [DONE]\n\n")
        return b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events) + b"0\r\n\r\n"

    def _finish(self) -> None:
        self._responding = False
        self._stats.open -= 1
        self._stats.finished += 1


async def serve(pace: Pace, host: str, port: int, *, reuse_port: bool = False) -> tuple[asyncio.Server, Stats]:
    """Start the server. Port 0 picks a free one. Works without uvloop too."""
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
    defaults = Pace()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.upstream", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8901)
    parser.add_argument("--ttft-ms", type=float, default=defaults.ttft_ms)
    parser.add_argument("--itl-ms", type=float, default=defaults.itl_ms, help="0: as fast as possible")
    parser.add_argument("--default-tokens", type=int, default=defaults.default_tokens)
    parser.add_argument("--max-model-len", type=int, default=defaults.max_model_len)
    parser.add_argument("--processes", type=int, default=1, help="number of processes; /stats covers one of them")
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
