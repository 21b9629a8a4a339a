"""A worker's word on itself, in a file, for a probe that runs beside it in its container."""

from __future__ import annotations

import os
from pathlib import Path

from shared.domain.job import WorkerState


class HeartbeatFile:
    """A file that holds the worker's state and is written again at each heartbeat; none where `path` is None."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        if path is not None:
            path.unlink(missing_ok=True)  # one that was here before may have left it

    def show(self, state: WorkerState) -> None:
        """Write the file, in one step."""
        if self._path is not None:
            new = self._path.with_name(f"{self._path.name}.{os.getpid()}")
            new.write_text(state.value)
            new.replace(self._path)
