"""A simulated upstream: the streaming APIs of OpenAI and other vendors at a fixed rate, for tests and load.

    python -m benchmarks.upstream --port 8901 --ttft-ms 20 --itl-ms 5

It is a plain asyncio protocol, so that it uses little CPU next to the system under test: one write per chunk, from
precomputed parts. Responses are deterministic: token n is the number n and a space, and a prompt has one token more
than words. `GET /stats` returns the number of requests for an answer, and of streams: open, finished, and abandoned by
their client (`left`).

Responses in the background and predictions are kept: their tokens are generated at the same rate whether or not a
client reads them.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import orjson
import uvloop

from benchmarks.framings import Completions, Framing, Generate, Messages, Predictions, Responses
from benchmarks.upstream_request import Pace, ParsedRequest, Refused, parse

MAX_HEAD = 64 * 1024
JSON = b"application/json"


@dataclass(slots=True)
class Stats:
    """Counters of this process."""

    requests: int = 0
    open: int = 0
    finished: int = 0
    left: int = 0
    connections: int = 0


@dataclass(slots=True)
class Kept:
    """An answer that is generated whether or not a client reads it; `began` is on the loop's clock.

    `polled`: the number of tokens that polls have returned; `ended`: they have returned its end too.
    """

    request: ParsedRequest
    began: float
    polled: int = 0
    ended: bool = False


class Upstream(asyncio.Protocol):
    """One keep-alive connection, serving requests in sequence."""

    _transport: asyncio.Transport

    def __init__(self, pace: Pace, stats: Stats, kept: dict[str, Kept]) -> None:
        """`kept`: the answers by their ids."""
        self._kept = kept
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
        parts = urlsplit(target.partition(" ")[0])
        try:
            self._route(method, parts.path, parse_qs(parts.query), rest[:length])
        except Refused as error:
            body = {"error": {"message": str(error), "type": "invalid_request_error", "code": error.code}}
            self._respond(error.status, body)

    def _route(self, method: str, path: str, query: Mapping[str, list[str]], body: bytes) -> None:
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
                request = self._parsed(path, body)
                if request.stream:
                    self._stream(request, Completions(request, self._stats.requests))
                else:
                    self._responding = True
                    self._stats.open += 1
                    seconds = (self._pace.ttft_ms + self._pace.itl_ms * len(request.texts)) / 1000
                    self._timer = self._loop.call_later(seconds, self._send_completion, request)
            case "POST", "/v1/responses":
                request = self._parsed(path, body)
                response_id = self._keep("resp", request)
                self._stream(request, Responses(request, response_id), began=self._kept[response_id].began)
            case "GET", _ if path.startswith("/v1/responses/"):
                kept = self._kept_as(response_id := path.rsplit("/", 1)[1])
                after = int(query.get("starting_after", ["-1"])[0])
                self._stream(
                    kept.request,
                    Responses(kept.request, response_id, after),
                    began=kept.began,
                    position=max(0, after + 1 - Responses.FIRST_TOKEN),
                )
            case "POST", "/v1/messages":
                request = self._parsed(path, body)
                self._stream(request, Messages(request, self._stats.requests))
            case "POST", _ if path.endswith("/generate_stream"):
                request = self._parsed(path, body)
                self._stream(request, Generate(request))
            case "POST", _ if path.endswith("/predictions"):
                prediction = self._keep("p", self._parsed(path, body))
                base = f"http://127.0.0.1:{self._transport.get_extra_info('sockname')[1]}/v1/predictions/{prediction}"
                urls = {"get": base, "stream": f"{base}/stream", "cancel": f"{base}/cancel"}
                self._respond(201, {"id": prediction, "status": "starting", "urls": urls})
            case "POST", _ if path.endswith("/run"):
                self._respond(200, {"id": self._keep("job", self._parsed(path, body)), "status": "IN_QUEUE"})
            case "GET", _ if "/stream/" in path:
                self._respond(200, self._polled(self._kept_as(path.rsplit("/", 1)[1])))
            case "GET", _ if "/status/" in path:
                self._kept_as(job := path.rsplit("/", 1)[1])
                ended = {"id": job, "status": "COMPLETED", "delayTime": 0, "executionTime": 0, "output": []}
                self._respond(200, ended)
            case "GET", _ if path.endswith("/stream"):
                kept = self._kept_as(path.split("/")[-2])
                self._stream(kept.request, Predictions(), began=kept.began)
            case "GET", _ if path.startswith("/v1/predictions/"):
                kept = self._kept_as(prediction := path.rsplit("/", 1)[1])
                count = len(kept.request.texts)
                metrics = {
                    "input_token_count": kept.request.prompt_tokens,
                    "output_token_count": count,
                    "predict_time": (self._pace.ttft_ms + self._pace.itl_ms * count) / 1000,
                }
                done = {"id": prediction, "status": "succeeded", "output": kept.request.texts, "metrics": metrics}
                self._respond(200, done)
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

    def _parsed(self, path: str, body: bytes) -> ParsedRequest:
        request = parse(path, body, self._pace)
        self._stats.requests += 1
        return request

    def _keep(self, kind: str, request: ParsedRequest) -> str:
        answer_id = f"{kind}_{os.getpid()}_{self._stats.requests}"
        self._kept[answer_id] = Kept(request, self._loop.time())
        return answer_id

    def _kept_as(self, answer_id: str) -> Kept:
        kept = self._kept.get(answer_id)
        if kept is None:
            raise Refused(404, f"Not found: {answer_id}.", "not_found")
        return kept

    def _polled(self, kept: Kept) -> dict[str, Any]:
        """The tokens of a RunPod job since the last poll, as its vLLM worker yields them: OpenAI's events."""
        texts, framing = kept.request.texts, Completions(kept.request, 0)
        elapsed_ms = 1000 * (self._loop.time() - kept.began) - self._pace.ttft_ms
        itl_ms = self._pace.itl_ms
        due = len(texts) if itl_ms == 0 else min(len(texts), max(0, int(elapsed_ms / itl_ms) + 1))
        first, kept.polled = kept.polled, due if elapsed_ms >= 0 else kept.polled
        events = [event for at in range(first, kept.polled) for event in framing.token(at, texts[at].encode())]
        ended = kept.polled == len(texts)
        if ended and not kept.ended:
            events += framing.tail()
            kept.ended = True
        status = "COMPLETED" if ended else "IN_PROGRESS"
        return {"status": status, "stream": [{"output": event.decode()} for event in events]}

    def _stream(
        self, request: ParsedRequest, framing: Framing, *, began: float | None = None, position: int = 0
    ) -> None:
        """Stream the tokens from `position` on, each in writes of precomputed parts.

        `began`: when the answer began, on the loop's clock; now without it. Tokens that are due are sent at once.
        """
        self._stats.open += 1
        self._responding = True
        texts = [text.encode() for text in request.texts]
        itl_s = self._pace.itl_ms / 1000
        due = (self._loop.time() if began is None else began) + self._pace.ttft_ms / 1000 + itl_s * position

        def step() -> None:
            nonlocal position, due
            if self._transport.is_closing():
                return
            if self._paused:
                self._step = step  # the client reads too slowly; `resume_writing` continues
                return
            self._step = None
            if position < len(texts):
                for event in framing.token(position, texts[position]):
                    self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
                position += 1
                due += itl_s
                self._timer = self._loop.call_at(due, step)
                return
            self._transport.write(b"".join(map(_chunk, framing.tail())) + b"0\r\n\r\n")
            self._finish()
            self._next_request()

        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        if head := framing.head():
            self._transport.write(_chunk(head))
        self._timer = self._loop.call_at(due, step)

    def _finish(self) -> None:
        self._responding = False
        self._stats.open -= 1
        self._stats.finished += 1


def _chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


async def serve(pace: Pace, host: str, port: int, *, reuse_port: bool = False) -> tuple[asyncio.Server, Stats]:
    """Start the server. Port 0 picks a free one. Works without uvloop too."""
    stats = Stats()
    kept: dict[str, Kept] = {}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Upstream(pace, stats, kept), host, port, reuse_port=reuse_port or None, backlog=4096
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
