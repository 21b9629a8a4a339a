"""Celery's worker with its own handling of signals and revoked tasks."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from celery.apps.worker import Worker, install_cry_handler, install_rdb_handler, install_worker_term_handler
from celery.signals import task_revoked


def cancel_revoked(sender: Any, request: Any, **_: Any) -> None:
    """Cancel the job of a task that was revoked before its start: Celery drops the message, so the job must end."""
    sender.app.loop_thread.cancel(request.id)


class HeadraceWorker(Worker):  # type: ignore[misc]
    """A worker that drains at SIGTERM, SIGINT or SIGQUIT; a second signal ends the grace period of the drain.

    Celery's own cold shutdown handles its child processes only, not threads. At SIGHUP, Celery would start the worker
    again; here the signal reloads models.yaml.
    """

    def install_platform_tweaks(self, worker: Any) -> None:
        install_worker_term_handler(worker)
        install_cry_handler()
        install_rdb_handler()
        task_revoked.connect(cancel_revoked)
        drain = signal.getsignal(signal.SIGTERM)
        draining = False

        def on_signal(number: int, frame: FrameType | None) -> None:
            nonlocal draining
            if draining:
                self.app.loop_thread.end_grace()
            elif callable(drain):
                draining = True
                drain(number, frame)

        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(name, on_signal)
