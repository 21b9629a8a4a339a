"""Celery's worker program, with its signals as an engine's worker needs them."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from celery.apps.worker import Worker
from celery.signals import task_revoked


def cancel_revoked(sender: Any, request: Any, **_: Any) -> None:
    """Flower's Revoke of a task that has not begun: Celery drops its message, so its job must end too."""
    sender.app.loop_thread.cancel(request.id)


class HeadraceWorker(Worker):  # type: ignore[misc]
    """SIGTERM, SIGINT and SIGQUIT drain, and a second one ends the drain's grace.

    Celery's cold shutdown knows only its own processes, not threads.
    """

    def install_platform_tweaks(self, worker: Any) -> None:
        super().install_platform_tweaks(worker)
        task_revoked.connect(cancel_revoked)
        drain = signal.getsignal(signal.SIGTERM)
        asked = False

        def on_signal(number: int, frame: FrameType | None) -> None:
            nonlocal asked
            if asked:
                self.app.loop_thread.end_grace()
            elif callable(drain):
                asked = True
                drain(number, frame)

        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(name, on_signal)
