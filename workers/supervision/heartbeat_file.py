"""The worker's state in a file, for a probe in the same container."""

from __future__ import annotations

import os
from pathlib import Path

from shared.domain.job import WorkerState


class HeartbeatFile:
    """A file with the worker's state, rewritten at each heartbeat. There is no file if `path` is None."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        if path is not None:
            path.unlink(missing_ok=True)  # a previous worker may have left it

    def write(self, state: WorkerState) -> None:
        """Write the file atomically."""
        if self._path is not None:
            new = self._path.with_name(f"{self._path.name}.{os.getpid()}")
            new.write_text(state.value)
            new.replace(self._path)
