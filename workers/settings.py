"""Settings of a worker process."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from shared.config.settings import Settings


class WorkerSettings(Settings):
    """What a worker reads beside the common settings."""

    beacon: Path | None = Field(None, description="The file in which this worker says how it is; see workers.probe.")
    drain_s: float = Field(30.0, ge=0, description="At SIGTERM: seconds that running jobs get to finish.")
    engine_back_off_max_s: float = Field(60.0, gt=0, description="Longest wait before a dead engine is started.")
    metrics_port: int | None = Field(None, ge=0, le=65535, description="Where /metrics is; 0: any free port.")
    metrics_host: str = "127.0.0.1"
    look_ahead: int = Field(2, ge=1, description="Messages reserved beyond the jobs that run.")
