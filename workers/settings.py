"""Settings of a worker process."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from shared.config.settings import Settings


class WorkerSettings(Settings):
    """A worker's settings, in addition to the common ones."""

    heartbeat_file: Path | None = Field(
        None,
        validation_alias="HEADRACE_BEACON",
        description="The file in which the worker writes its state at each heartbeat; see workers.probe.",
    )
    stall_s: float = Field(
        30.0, gt=0, description="A worker whose event loop does not answer for this long loses its lease."
    )
    drain_s: float = Field(30.0, ge=0, description="Seconds that running jobs get to finish at SIGTERM.")
    removed_grace_s: float = Field(
        10.0,
        ge=0,
        description="A worker whose model was removed from models.yaml waits this long for jobs of API processes that"
        " have not reloaded it yet, in seconds.",
    )
    engine_back_off_max_s: float = Field(
        60.0, gt=0, description="The longest wait before a dead engine is restarted, in seconds."
    )
    metrics_port: int | None = Field(None, ge=0, le=65535, description="The port of /metrics; 0 is any free port.")
    metrics_host: str = "127.0.0.1"
    look_ahead: int = Field(2, ge=1, description="Messages reserved beyond the running jobs.")
