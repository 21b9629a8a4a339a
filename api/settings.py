"""Settings of an API process, grouped by feature. A feature receives its group, not all settings."""

from __future__ import annotations

import math
import os
import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import NoDecode

from shared.config.settings import REPOSITORY, Settings, SettingsGroup
from shared.domain.field_types import contradiction
from shared.domain.ids import REGION
from shared.domain.log_level import LogLevel
from shared.domain.master_key import decode_master_key

# The most bytes of one image or file, and of all in a request, unless they are set.
MAX_PART_BYTES, MAX_MEDIA_BYTES = 5_000_000, 20_000_000
# A shorter secret could be guessed.
MIN_CACHE_SECRET = 32
# The part of a body that images and files may have by default, decoded: base64 takes a third more, and the rest of the
# request needs some room.
MEDIA_SHARE = 0.73


class HttpSettings(SettingsGroup):
    """The HTTP server."""

    host: str = Field("127.0.0.1", description="The address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="The port to listen on.")
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024, description="A larger request is rejected with 413.")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Origins whose pages may call the API from a browser:"
        " `https://a.example.com,https://b.example.com`, or `*` for all.",
    )
    max_header_bytes: int = Field(
        32 * 1024,
        ge=1024,
        description="A request whose request line and headers are larger gets 431, or 414 if its URL is.",
    )
    header_timeout_s: float = Field(
        10.0,
        gt=0,
        description="Seconds in which a client must send a request's headers, or, after it has connected, its first"
        " request.",
    )
    body_timeout_s: float = Field(
        30.0,
        gt=0,
        description="Seconds in which a client must send a body, plus those that its size allows; otherwise it"
        " gets 408."
        " Time in which the API does not read is not counted.",
    )
    min_body_rate: int = Field(
        4096, ge=1, description="For each of this many bytes of a body, the client has one more second to send it."
    )
    keep_alive_s: int = Field(
        65,
        ge=1,
        description="Seconds until an idle connection is closed. Keep it longer than a proxy in front keeps its"
        " connections (ingress-nginx and AWS: 60).",
    )
    max_connections: int = Field(
        10_000,
        ge=1,
        description="Open connections of one API process, also limited by its limit of open files, of which about 950"
        " are reserved for other purposes; beyond it, the one that has waited longest for a request is closed.",
    )
    max_connections_per_address: int = Field(
        0,
        ge=0,
        description="Open connections of one client address, beyond which connections get 503; 0: unlimited. Behind a"
        " proxy, the address is the proxy's: limit connections there.",
    )
    stop_grace_s: float = Field(5.0, ge=0, description="Seconds that open requests get to finish after SIGTERM.")

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _origins(cls, text: str | tuple[str, ...]) -> tuple[str, ...]:
        if not isinstance(text, str):
            return text  # the default
        origins = tuple(origin.strip() for origin in text.split(",") if origin.strip())
        for origin in origins:
            # The exact form in which browsers send it.
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@\sA-Z]+", origin):
                raise ValueError(f"{origin!r} must be an origin such as https://chat.example.com, without a path, or *")
        return origins


class CompatibilitySettings(SettingsGroup):
    """How strictly requests are read."""

    unknown_parameters: Literal["accept", "refuse"] = Field(
        "accept",
        description="`accept`: parameters that are unknown or have no effect are named in `x-headrace-ignored`."
        " `refuse`: they are rejected with 400.",
    )


class AuthSettings(SettingsGroup):
    """Authentication by API keys."""

    key_cache_s: float = Field(
        5.0,
        ge=0,
        description="Seconds that a key or a session is cached, valid or not. Within this time, a revoked key is"
        " refused"
        " and its open streams are closed.",
    )
    revoked_jobs: Literal["finish", "cancel"] = Field(
        "finish", description="`cancel`: the jobs and batches of a revoked key are cancelled."
    )


class QuotaSettings(SettingsGroup):
    """Quotas per project."""

    project_queued_jobs: int = Field(
        10_000, ge=0, description="Maximum number of queued jobs of a project, without batches; 0: unlimited."
    )
    project_urgent_jobs: int = Field(
        100, ge=0, description="Maximum number of queued jobs of a project with a priority of 0 to 2; 0: unlimited."
    )
    project_running_jobs: int = Field(
        0, ge=0, description="With this many running jobs, a project's submits are rejected; 0: unlimited."
    )
    project_request_bytes: int = Field(
        1024**3, ge=0, description="Maximum size of the requests of a project's open jobs together; 0: unlimited."
    )
    project_streams: int = Field(
        2500, ge=0, description="Maximum number of open event streams of a project in one API process; 0: unlimited."
    )
    project_open_bytes: int = Field(
        64 * 1024 * 1024,
        ge=0,
        description="Maximum size of the bodies of a project's open requests, with the conversations that they"
        " continue, in one API process; 0: unlimited.",
    )
    project_file_bytes: int = Field(
        20 * 1024**3, ge=0, description="Maximum size of the files of a project together; 0: unlimited."
    )


class RateLimitSettings(SettingsGroup):
    """Rate limits, which the table of limits has."""

    rate_limits_without_redis: Literal["allow", "refuse"] = Field(
        "allow",
        description="Requests whose rate limits cannot be checked, because Redis is unavailable, are accepted, or"
        " refused with 503.",
    )


class StreamSettings(SettingsGroup):
    """Server-sent event streams."""

    ping_s: float = Field(15.0, gt=0, description="Seconds between keepalive events on an idle SSE stream.")
    send_timeout_s: float = Field(
        60.0, gt=0, description="A client that reads nothing for this long is disconnected; it can resume."
    )
    resync_s: float = Field(
        5.0, gt=0, description="A stream without events for this long is checked against the log and the row."
    )


class StartSettings(SettingsGroup):
    """Starts of new jobs."""

    early_starts: bool = Field(
        True,
        description="Whether the request of a new job of at most 16 KB is in Redis for up to 2 s, beside its message,"
        " so that a worker with a free slot starts it while its claim is being committed.",
    )


class ConversationSettings(SettingsGroup):
    """Conversations that `previous_response_id` continues."""

    max_conversation_bytes: int = Field(
        4 * 1024 * 1024, ge=1024, description="A larger conversation, with all its earlier turns, is rejected with 400."
    )
    max_conversation_messages: int = Field(
        10_000, ge=2, description="A conversation with more messages is rejected with 400."
    )


class ContextSettings(SettingsGroup):
    """Conversations that outgrow their model's context."""

    summary_timeout_s: float = Field(
        30.0,
        gt=0,
        description="Seconds that a request waits for the summary of its conversation; after that, its oldest turns are"
        " dropped without one.",
    )


class MediaSettings(SettingsGroup):
    """Images and files in messages."""

    max_part_bytes: int = Field(
        0,
        ge=0,
        description="A larger image or file in a message is rejected with 400 (bytes, decoded). 0: 5 MB, or less if"
        " `HEADRACE_MAX_MEDIA_BYTES` is less.",
    )
    max_media_bytes: int = Field(
        0,
        ge=0,
        description="Maximum size of all images and files in one request together (bytes, decoded). 0: 20 MB, but at"
        " most 73 % of `HEADRACE_MAX_BODY_BYTES`, in which base64 takes a third more. A process does not start with"
        " values that do not fit in a body.",
    )


class FileSettings(SettingsGroup):
    """Uploaded files and result files."""

    files: str = Field(
        default_factory=lambda: str(Path(os.environ.get("HEADRACE_HOME") or REPOSITORY / ".headrace") / "files"),
        description="Where file contents are stored: a directory that all API processes share, or `s3://bucket/prefix`."
        " Default: `files` in `HEADRACE_HOME`.",
    )
    file_retention_s: float = Field(
        30 * 24 * 3600.0,
        ge=0,
        description="Seconds that a file without `expires_after` is kept; 0: until it is deleted.",
    )
    max_file_bytes: int = Field(200 * 1024 * 1024, ge=1, description="A larger upload is rejected with 413.")
    max_file_lines: int = Field(50_000, ge=1, description="An upload with more lines is rejected with 400.")

    @field_validator("files")
    @classmethod
    def _directory_or_bucket(cls, files: str) -> str:
        if not re.fullmatch("s3://[a-z0-9.-]{3,63}(/.*)?", files) and (not files or "://" in files):
            raise ValueError("must be a directory, or a bucket as s3://bucket/prefix")
        return files


class BatchSettings(SettingsGroup):
    """Batches."""

    batch_jobs: int = Field(500, ge=1, description="Maximum number of queued and running jobs per batch.")
    batch_poll_s: float = Field(1.0, gt=0, description="Seconds between checks of a batch.")


class RetentionSettings(SettingsGroup):
    """Retention of jobs and responses."""

    retention_s: int = Field(
        30 * 24 * 3600, ge=0, description="Seconds that ended jobs and responses are kept; 0: forever."
    )


class RequestLogSettings(SettingsGroup):
    """The request log."""

    request_log_level: LogLevel = Field(
        LogLevel.METADATA,
        description="At most this is kept of jobs in the request log: `none`, `metadata`, `redacted` or `full`."
        " Projects, keys and requests can only choose less.",
    )
    log_key: str = Field(
        "",
        description="The master key that encrypts the bodies of the request log: base64 of 32 bytes, the same for all"
        " API processes (`python -m api.request_log generate-key`). Without it, no bodies are kept.",
    )
    log_key_previous: str = Field(
        "", description="Another master key that bodies can still be read with, while `HEADRACE_LOG_KEY` is replaced."
    )
    log_retention_days: int = Field(30, ge=1, description="Days that the request log keeps bodies.")
    log_metadata_days: int = Field(
        90, ge=1, description="Days that the request log keeps its rows; at least `HEADRACE_LOG_RETENTION_DAYS`."
    )

    @field_validator("log_key", "log_key_previous")
    @classmethod
    def _master_key(cls, key: str) -> str:
        if key:
            decode_master_key(key)
        return key


class WebhookSettings(SettingsGroup):
    """Webhooks."""

    webhook_allow_http: bool = Field(False, description="`true`: webhooks may have URLs with `http://`.")
    webhook_allow_private: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        (),
        description="Networks that webhooks are sent to although they are not public: `10.1.0.0/16,fd00:1::/64`.",
    )
    webhook_retention_s: int = Field(
        30 * 24 * 3600, ge=0, description="Seconds that ended deliveries of webhooks are kept; 0: forever."
    )

    @field_validator("webhook_allow_private", mode="before")
    @classmethod
    def _networks(cls, text: str | tuple[Any, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
        if not isinstance(text, str):
            return text  # the default
        networks = []
        for item in filter(None, (item.strip() for item in text.split(","))):
            try:
                networks.append(ip_network(item))
            except ValueError:
                raise ValueError(f"{item!r} must be a network such as 10.1.0.0/16 or fd00:1::/64") from None
        return tuple(networks)


class CacheSettings(SettingsGroup):
    """The response cache."""

    cache_secret: str = Field(
        "",
        description="Secret of the keys of cached answers, the same for all API processes; at least 32 characters."
        " Default: one that the database keeps. A change empties the cache.",
    )

    cache_max_bytes: int = Field(
        1024**3,
        ge=0,
        description="Maximum size of the answers in the cache; beyond it, the least recently used are removed.",
    )

    @field_validator("cache_secret")
    @classmethod
    def _long_enough(cls, secret: str) -> str:
        if secret and len(secret) < MIN_CACHE_SECRET:
            raise ValueError(f"must have at least {MIN_CACHE_SECRET} characters")
        return secret


class FeedbackSettings(SettingsGroup):
    """Feedback about answers."""

    feedback_token_s: int = Field(
        7 * 24 * 3600,
        ge=0,
        le=366 * 24 * 3600,
        description="Seconds for which the `x-headrace-feedback-token` of an answer is valid, with which a browser"
        " gives feedback without an API key; 0: there are none.",
    )


class RoutingSettings(SettingsGroup):
    """Routes."""

    routing_model: Path | None = Field(
        None,
        description="File of `python -m api.routing fit`: routes judge the complexity of requests by it instead of by"
        " the shipped heuristic. Read at the start.",
    )

    @field_validator("routing_model", mode="before")
    @classmethod
    def _set_or_not(cls, text: str | Path | None) -> str | Path | None:
        return text or None  # an empty variable is none


class EvalSettings(SettingsGroup):
    """Judges."""

    rubrics: Path | None = Field(
        None,
        description="The file that declares the rubrics by which judges score answers, such as `rubrics.yaml`. Default:"
        " there are none. Read again at SIGHUP.",
    )

    @field_validator("rubrics", mode="before")
    @classmethod
    def _file_or_none(cls, text: str | Path | None) -> str | Path | None:
        return text or None  # an empty variable is none


class ConsoleSettings(SettingsGroup):
    """The web console."""

    console: Literal["on", "off"] = Field("on", description="`off`: no web console at `/console`.")


class RegionSettings(SettingsGroup):
    """Multiple regions."""

    region: str = Field("", pattern=f"^({REGION})?$", description="This region's code, the suffix of ids created here.")
    regions: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict,
        description="The addresses of all regions: `eu=https://eu.example.com,us=https://us.example.com`.",
    )

    @field_validator("regions", mode="before")
    @classmethod
    def _by_code(cls, text: str | dict[str, str], info: ValidationInfo) -> dict[str, str]:
        if isinstance(text, dict):
            return text  # the default
        if text and not info.data.get("region"):
            raise ValueError("requires HEADRACE_REGION, the code of this region")
        regions = {}
        for item in filter(None, text.split(",")):
            code, _, url = item.strip().partition("=")
            parts = urlsplit(url)
            if not re.fullmatch(REGION, code):
                raise ValueError(f"{code!r} must be a region code such as eu or us2; write eu=https://eu.example.com")
            if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
                raise ValueError(f"{code}: must be a URL such as https://eu.example.com")
            regions[code] = url.rstrip("/")
        return regions


class ApiSettings(
    HttpSettings,
    CompatibilitySettings,
    AuthSettings,
    QuotaSettings,
    RateLimitSettings,
    StreamSettings,
    StartSettings,
    ConversationSettings,
    ContextSettings,
    MediaSettings,
    FileSettings,
    BatchSettings,
    RetentionSettings,
    RequestLogSettings,
    WebhookSettings,
    CacheSettings,
    FeedbackSettings,
    RoutingSettings,
    EvalSettings,
    ConsoleSettings,
    RegionSettings,
    Settings,
):
    """All settings of an API process."""

    @model_validator(mode="after")
    def _media_fit_in_a_body(self) -> Self:
        """Choose the limits of images and files that are not set, and check the others.

        A limit that the body's limit makes unreachable would be a promise that is not kept: such a request gets 413.
        """
        is_set = self.max_media_bytes > 0
        if not is_set:
            fitting = int(self.max_body_bytes * MEDIA_SHARE)
            self.max_media_bytes = max(self.max_part_bytes, min(MAX_MEDIA_BYTES, fitting))
        if not self.max_part_bytes:
            self.max_part_bytes = min(MAX_PART_BYTES, self.max_media_bytes)
        if self.max_part_bytes > self.max_media_bytes:
            raise contradiction(
                "max_part_bytes", f"must be at most HEADRACE_MAX_MEDIA_BYTES, which is {self.max_media_bytes}"
            )
        encoded = 4 * math.ceil(self.max_media_bytes / 3)
        if encoded >= self.max_body_bytes:
            raise contradiction(
                "max_media_bytes" if is_set else "max_part_bytes",
                f"{self.max_media_bytes} bytes are {encoded} in base64, which does not fit in a body; set"
                f" HEADRACE_MAX_BODY_BYTES, which is {self.max_body_bytes}, to more than that",
            )
        return self

    @model_validator(mode="after")
    def _request_log_is_possible(self) -> Self:
        if self.log_key_previous and not self.log_key:
            raise contradiction("log_key_previous", "requires HEADRACE_LOG_KEY, the key that replaces it")
        if self.request_log_level.keeps_body and not self.log_key:
            raise contradiction(
                "request_log_level",
                f"{self.request_log_level.value} keeps bodies, which requires HEADRACE_LOG_KEY: set it to the output of"
                " `python -m api.request_log generate-key` for all API processes",
            )
        if self.log_metadata_days < self.log_retention_days:
            raise contradiction(
                "log_metadata_days", f"must be at least HEADRACE_LOG_RETENTION_DAYS, which is {self.log_retention_days}"
            )
        return self


class DatabaseCommandSettings(ApiSettings):
    """The settings of a command that needs only the database."""

    redis_url: str = "redis://unused"
