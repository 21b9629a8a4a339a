"""Celery's worker program, with its signals as an engine's worker needs them."""

from __future__ import annotations

import signal
from typing import Any

from celery.apps.worker import Worker


class WorkerProgram(Worker):  # type: ignore[misc]
    """SIGTERM, SIGINT and SIGQUIT all drain: Celery's cold shutdown knows only its own processes, not threads."""

    def install_platform_tweaks(self, worker: Any) -> None:
        super().install_platform_tweaks(worker)
        drain = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGINT, drain)
        signal.signal(signal.SIGQUIT, drain)
