"""Settings of an API process."""

from __future__ import annotations

from pydantic import Field

from shared.settings import Settings


class ApiSettings(Settings):
    """What the API reads beside the common settings."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024, description="A larger request is refused with 413.")
    ping_s: float = Field(15.0, gt=0, description="Seconds between comments on an idle SSE stream.")
    send_timeout_s: float = Field(60.0, gt=0, description="A reader that takes nothing for so long is dropped.")
    resync_s: float = Field(5.0, gt=0, description="A stream silent for so long is checked against log and row.")
    key_cache_s: float = Field(5.0, ge=0, description="How long a key that was found valid is taken as valid.")
    stop_grace_s: float = Field(5.0, ge=0, description="At SIGTERM: seconds for requests to end.")
