"""Settings of an API process."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from shared.settings import REPOSITORY, Settings


class ApiSettings(Settings):
    """What the API reads beside the common settings."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024, description="A larger request is refused with 413.")
    ping_s: float = Field(15.0, gt=0, description="Seconds between comments on an idle SSE stream.")
    send_timeout_s: float = Field(60.0, gt=0, description="A reader that takes nothing for so long is dropped.")
    resync_s: float = Field(5.0, gt=0, description="A stream silent for so long is checked against log and row.")
    key_cache_s: float = Field(5.0, ge=0, description="How long a key that was found valid is taken as valid.")
    files: Path = Field(
        default_factory=lambda: Path(os.environ.get("HEADRACE_HOME") or REPOSITORY / ".headrace") / "files",
        description="The directory of files' bytes; all API processes must share it.",
    )
    max_file_bytes: int = Field(200 * 1024 * 1024, ge=1, description="A larger upload is refused with 413.")
    max_file_lines: int = Field(50_000, ge=1, description="An upload with more lines is refused with 400.")
    batch_jobs: int = Field(500, ge=1, description="Jobs of one batch that are queued or run at a time.")
    batch_poll_s: float = Field(1.0, gt=0, description="Seconds between two looks at a batch.")
    stop_grace_s: float = Field(5.0, ge=0, description="At SIGTERM: seconds for requests to end.")
