"""An OTLP/HTTP collector that stores the spans it receives."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2


@dataclass(frozen=True)
class SpanRecord:
    """A received span, and the process that sent it. Ids are hex; `parent` is empty for a root span."""

    service: str
    instance: str
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    links: tuple[tuple[str, str], ...]
    attributes: dict[str, Any]
    error: bool
    start: int
    end: int


class Collector:
    """The spans received so far."""

    def __init__(self) -> None:
        self._spans: list[SpanRecord] = []
        self._lock = threading.Lock()
        self.url = ""
        self.bodies: list[bytes] = []

    def add(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self._lock:
            self.bodies.append(body)
            for group in request.resource_spans:
                resource = _attributes(group.resource.attributes)
                for scope in group.scope_spans:
                    self._spans += [_record(resource, span) for span in scope.spans]

    def trace(self, trace_id: str) -> list[SpanRecord]:
        """The spans of a trace, sorted by start time."""
        with self._lock:
            return sorted((span for span in self._spans if span.trace == trace_id), key=lambda span: span.start)

    def of_job(self, job_id: str) -> list[SpanRecord]:
        """The spans of the trace that contains a job."""
        with self._lock:
            traces = {
                span.trace
                for span in self._spans
                if span.attributes.get("headrace.job.id") == job_id and span.name.startswith(("queue", "attempt"))
            }
        assert len(traces) <= 1, "one job, one trace"
        return self.trace(traces.pop()) if traces else []


def _record(resource: dict[str, Any], span: trace_pb2.Span) -> SpanRecord:
    return SpanRecord(
        service=resource["service.name"],
        instance=resource["service.instance.id"],
        name=span.name,
        kind=span.kind,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        attributes=_attributes(span.attributes),
        error=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@contextmanager
def collector() -> Iterator[Collector]:
    """Start a collector on 127.0.0.1."""
    collected = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            collected.add(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collected.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collected
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
