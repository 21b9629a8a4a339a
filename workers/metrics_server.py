"""Where a worker shows its metrics, a small HTTP server in a thread, and what is read there of its load and engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server

from shared.telemetry.scrape_targets import scrape_target
from workers.settings import WorkerSettings


@contextmanager
def serve_metrics(registry: CollectorRegistry, settings: WorkerSettings) -> Iterator[None]:
    """Serve a registry at `/metrics` where `HEADRACE_METRICS_PORT` asks for it.

    Raises:
        OSError: the port is taken, or the host is not one of this machine.
    """
    if settings.metrics_port is None:
        yield
        return
    server, thread = start_http_server(settings.metrics_port, settings.metrics_host, registry)
    with scrape_target(settings.metrics_targets, "worker", settings.metrics_host, server.server_port):
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
