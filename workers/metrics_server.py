"""The HTTP server of a worker's metrics, in a thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server

from shared.telemetry.scrape_targets import scrape_target
from workers.settings import WorkerSettings


@contextmanager
def serve_metrics(registry: CollectorRegistry, settings: WorkerSettings) -> Iterator[None]:
    """Serve a registry at `/metrics` if `HEADRACE_METRICS_PORT` is set.

    Raises:
        OSError: the port is in use, or the host is not an address of this machine.
    """
    if settings.metrics_port is None:
        yield
        return
    server, thread = start_http_server(settings.metrics_port, settings.metrics_host, registry)
    try:
        # Not a target any more before it stops responding.
        with scrape_target(settings.metrics_targets, "worker", settings.metrics_host, server.server_port):
            yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
