"""The worker's state in a file, for a probe in the same container."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from shared.domain.job import WorkerState

logger = logging.getLogger(__name__)


class HeartbeatFile:
    """A file with the worker's state, rewritten at each heartbeat. There is no file if `path` is None.

    It may be written from several threads.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        if path is not None:
            path.unlink(missing_ok=True)  # a previous worker may have left it

    def write(self, state: WorkerState) -> None:
        """Write the file atomically. If that fails, the probe finds an old one, and the worker keeps its lease."""
        if self._path is None:
            return
        with self._lock:
            new = self._path.with_name(f"{self._path.name}.{os.getpid()}")
            try:
                new.write_text(state.value)
                new.replace(self._path)
            except OSError as error:
                logger.warning("cannot write the heartbeat file: %s", error)
