"""An HTTP server whose responses a test writes itself, byte for byte, to test clients of the API."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

JOB = "job_1"


@dataclass
class Request:
    """A request that the server has received."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Response:
    """A response. `cut`: the connection is closed after the body, without its regular end."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


def reply(value: Any, status: int = 200, **headers: str) -> Response:
    """A response with JSON."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Response(json.dumps(value).encode(), status, {"Content-Type": "application/json"} | named)


def refusal(status: int, message: str, param: str | None = None, **headers: str) -> Response:
    """An error of the API."""
    return reply({"error": {"message": message, "type": "x", "param": param, "code": None}}, status, **headers)


def events(*items: tuple[int | None, str, dict[str, Any]], cut: bool = False) -> Response:
    """A stream of events: number, name and data of each. `cut`: the connection is lost after them."""
    frames = [
        (f"id: {number}\n" if number else "") + f"event: job.{name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
        for number, name, data in items
    ]
    return Response("".join(frames).encode(), 200, {"Content-Type": "text/event-stream"}, cut)


def delta(number: int, text: str, **more: Any) -> tuple[int, str, dict[str, Any]]:
    return number, "delta", {"index": 0, "text": text, **more}


def completed(number: int, tokens: int = 3) -> tuple[int, str, dict[str, Any]]:
    timings = {"queued_ms": 1, "ttft_ms": 200, "total_ms": 1200}
    return number, "completed", {"usage": {"prompt_tokens": 2, "completion_tokens": tokens}, "timings": timings}


class ScriptedApi:
    """Answers requests of a method and path with the responses that a test has added, the last one repeatedly."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._responses: dict[str, list[Response]] = {}
        self.url = ""

    def on(self, route: str, *responses: Response) -> None:
        """Set the responses of a route such as `GET /v1/jobs`."""
        self._responses[route] = list(responses)

    def of(self, route: str) -> list[Request]:
        """The requests of a route that were received."""
        return [request for request in self.requests if f"{request.method} {request.path.partition('?')[0]}" == route]

    def respond(self, request: Request) -> Response:
        self.requests.append(request)
        responses = self._responses.get(f"{request.method} {request.path.partition('?')[0]}")
        if not responses:
            return refusal(404, f"There is no {request.method} {request.path}.")
        return responses.pop(0) if len(responses) > 1 else responses[0]


@contextlib.contextmanager
def scripted_api() -> Iterator[ScriptedApi]:
    """Run the server."""
    api = ScriptedApi()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(api.respond))
    server.daemon_threads = True
    api.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(respond: Callable[[Request], Response]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self._body()
            response = respond(Request(self.command, self.path, dict(self.headers.items()), body))
            self.send_response(response.status)
            for name, value in response.headers.items():
                self.send_header(name, value)
            # A promise of more bytes than come makes the close of the connection an error.
            self.send_header("Content-Length", str(len(response.body) + response.cut))
            self.end_headers()
            self.wfile.write(response.body)
            self.close_connection = self.close_connection or response.cut

        do_GET = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815 - the names that the base class looks for

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
