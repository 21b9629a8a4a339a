"""`python -m workers.flower`: Flower, for requests to expected hosts only, and with bounded memory.

Flower answers requests for any host name. A web page could point its own name at Flower's address, and read what Flower
shows to a browser on the same machine without a password (DNS rebinding). Here a request for an unexpected host gets
421. HEADRACE_FLOWER_HOSTS names the expected ones besides this machine's own, separated by commas.

Flower keeps the latest tasks and workers in memory. By default these are 100,000 tasks, which take more than the 512 MB
that Compose and the cluster give it, and counters and metrics of every worker that ever ran: each start of a worker has
a name of its own. Here the defaults are lower, and what is kept of a worker goes with it.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import flower.command
from celery.bin.celery import main as celery
from flower.app import Flower
from tornado.httputil import HTTPServerRequest, split_host_and_port
from tornado.ioloop import PeriodicCallback
from tornado.web import RequestHandler

LOCAL = frozenset(("localhost", "127.0.0.1", "::1"))
# For probes, which use the address of a container.
ANY_HOST = "/healthcheck"
# Flower's own variables, so that they and its command line override these. A task takes about 6 KB, a worker 13 KB.
DEFAULTS = {"FLOWER_MAX_TASKS": "20000", "FLOWER_MAX_WORKERS": "1000"}
FORGET_EVERY_S = 60.0


class _Misdirected(RequestHandler):
    def prepare(self) -> None:
        self.set_status(421)
        self.finish("Misdirected request: HEADRACE_FLOWER_HOSTS does not name this host.\n")


class ExpectedHosts(Flower):  # type: ignore[misc]
    """Flower's application."""

    def start(self) -> None:
        PeriodicCallback(self.forget_workers, FORGET_EVERY_S * 1000).start()
        super().start()

    def forget_workers(self) -> None:
        """Drop the counters, metrics and details of workers that are no longer among the latest."""
        state = self.events.state
        gone = (set(state.counter) | set(self.inspector.workers)) - set(state.workers)
        state.metrics.remove_workers(gone)
        for name in gone:
            state.counter.pop(name, None)
            self.inspector.workers.pop(name, None)

    def find_handler(self, request: HTTPServerRequest, **options: Any) -> Any:
        if request.path != ANY_HOST and host_of(request.host) not in LOCAL | expected():
            return self.get_handler_delegate(request, _Misdirected)
        return super().find_handler(request, **options)


def host_of(header: str) -> str:
    return split_host_and_port(header.lower())[0].strip("[]")


def expected() -> frozenset[str]:
    names = os.environ.get("HEADRACE_FLOWER_HOSTS", "").split(",")
    return frozenset(name.strip().lower().strip("[]") for name in names if name.strip())


def main() -> int:
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    flower.command.Flower = ExpectedHosts
    sys.argv[1:] = ["-A", "workers.app", "flower", *sys.argv[1:]]
    return int(celery() or 0)


if __name__ == "__main__":
    sys.exit(main())
