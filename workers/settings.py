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
        description="File in which the worker writes its state at each heartbeat; `python -m workers.probe alive` and"
        " `ready` read it.",
    )
    stall_s: float = Field(
        30.0,
        gt=0,
        description="A worker whose event loop does not answer for this long no longer renews its lease, and after ten"
        " times as long the worker ends, to be started again. A loop that is only busy keeps its lease.",
    )
    drain_s: float = Field(
        30.0,
        ge=0,
        description="Seconds that running jobs have to finish after SIGTERM, before they return to the queue. `make up`"
        " sets 5.",
    )
    removed_grace_s: float = Field(
        10.0,
        ge=0,
        description="A worker whose model was removed from models.yaml waits this long for jobs of API processes that"
        " have not reloaded it yet, in seconds. It ends when no job of the model is left.",
    )
    engine_back_off_max_s: float = Field(
        60.0, gt=0, description="The longest wait before a dead engine is restarted, in seconds."
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="The port of the worker's `/metrics`; 0: any free one."
    )
    metrics_host: str = Field("127.0.0.1", description="The address of the worker's `/metrics`.")
    look_ahead: int = Field(2, ge=1, description="Messages that a worker reserves in addition to its running jobs.")
