"""Headers of a submit: the idempotency key, the deadlines, and the level of the request log."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from fastapi import Depends, Request
from pydantic import BaseModel, Field

from api.http.header_parameters import HeaderParameter, reads_headers
from api.http.members import EmptyIsValue
from api.http.webhook_parameters import JobWebhookParameters
from shared.config.durations import seconds_of
from shared.domain.answer_options import (
    NO_CACHE_CONTROL,
    CacheControl,
    CacheOptions,
    ContextOptions,
    RequestOptions,
    ToolClearing,
)
from shared.domain.errors import InvalidRequest
from shared.domain.log_level import LOG_HEADER, LogLevel, strictest
from shared.domain.new_job import Idempotency

MAX_DURATION_S = 30 * 24 * 3600
_IDEMPOTENCY_KEY = "Idempotency-Key"
_START_BEFORE = "Start-Before"
_CANCEL_AFTER = "Cancel-After"
_CACHE_CONTROL = "Cache-Control"


@dataclass(frozen=True, slots=True)
class SubmitHeaders:
    """The headers' values. Times are in seconds from now."""

    idempotency_key: str | None = None
    start_within_s: float | None = None
    finish_within_s: float | None = None
    cache_control: CacheControl = NO_CACHE_CONTROL
    log_level: LogLevel | None = None

    def options(self, body: AnswerParameters) -> RequestOptions:
        """How the request may be answered, by its headers and its body."""
        return RequestOptions(
            body.cache,
            self.cache_control,
            body.store,
            body.context_options,
            body.tool_clearing,
            streams=vars(body).get("stream") is True,  # in pydantic, `getattr` with a default is slow
            log_level=self.log_level,
        )

    def idempotency(self, path: str, body: BaseModel) -> Idempotency | None:
        """The idempotency key with a digest of the request; None without a key."""
        if self.idempotency_key is None:
            return None
        request: dict[str, Any] = {
            "path": path,
            "body": body.model_dump(mode="json", exclude_unset=True),
            "times": [self.start_within_s, self.finish_within_s],
        }
        if self.log_level is not None:
            request["log_level"] = self.log_level
        # Without Cache-Control: a retry that bypasses the cache is still the same request.
        text = orjson.dumps(request, option=orjson.OPT_SORT_KEYS)
        return Idempotency(self.idempotency_key, hashlib.sha256(text).hexdigest())


@reads_headers(
    HeaderParameter(_IDEMPOTENCY_KEY, "For 24 hours, a request with the same key returns the same job."),
    HeaderParameter(
        _START_BEFORE, "A job that has not started by then becomes `expired`, for example `30s`.", example="30s"
    ),
    HeaderParameter(
        _CANCEL_AFTER, "A job that has not finished by then is cancelled; its partial output is kept.", example="90s"
    ),
    HeaderParameter(
        _CACHE_CONTROL,
        "The response cache: `no-store` bypasses it, `no-cache` runs the request again, and `max-age=N` accepts"
        " answers of the last N seconds.",
        example="max-age=3600",
    ),
    HeaderParameter(
        LOG_HEADER,
        "At most this is kept of the request in the request log: `none`, `metadata`, `redacted` or `full`. The"
        " strictest of the levels of the installation, the project, the key and the request applies. With `none`, the"
        " job's content is deleted a minute after its end.",
        example="none",
    ),
)
async def submit_headers(request: Request) -> SubmitHeaders:
    """Parse and validate the headers.

    Raises:
        InvalidRequest: a header is invalid; `param` names it.
    """
    headers = request.headers
    idempotency_key = headers.get(_IDEMPOTENCY_KEY)
    if idempotency_key is not None and not (0 < len(idempotency_key) <= 255 and idempotency_key.isprintable()):
        raise InvalidRequest(f"{_IDEMPOTENCY_KEY}: must be 1 to 255 printable characters", param=_IDEMPOTENCY_KEY)
    # Lists: a proxy may add a line of its own, or join lines.
    cache_control = ",".join(headers.getlist(_CACHE_CONTROL))
    log_levels = ",".join(headers.getlist(LOG_HEADER))
    return SubmitHeaders(
        idempotency_key,
        _seconds(_START_BEFORE, headers.get(_START_BEFORE)),
        _seconds(_CANCEL_AFTER, headers.get(_CANCEL_AFTER)),
        _read_cache_control(cache_control) if cache_control else NO_CACHE_CONTROL,
        _read_log_level(log_levels) if LOG_HEADER in headers else None,
    )


def replay_headers(created: bool) -> dict[str, str]:
    """The response headers of a submit; `created` is False if its idempotency key was used before."""
    return {} if created else {"Idempotent-Replayed": "true"}


class AnswerParameters(JobWebhookParameters):
    """The parameters that all dialects have to control how a request may be answered, and who is told of its end."""

    cache: Annotated[CacheOptions | None, EmptyIsValue()] = Field(
        None,
        description="Answer the request from the response cache, and store its answer there. `{}` takes the defaults.",
    )
    store: bool | None = Field(
        None,
        description="If false, nothing of the request is kept: no entry in the request log and in the response cache,"
        " and its content is deleted a minute after its end.",
    )
    context: ContextOptions | None = Field(
        None, description="How a conversation that outgrows the model's context is handled."
    )

    @property
    def context_options(self) -> ContextOptions | None:
        """The same, also from the dialect's own parameters."""
        return self.context

    @property
    def tool_clearing(self) -> ToolClearing | None:
        """When old results of tools are cleared."""
        return None


def _read_cache_control(value: str) -> CacheControl:
    """Read the directives that this API knows (RFC 9111); others are ignored, as caches do."""
    directives = dict(_directive(part) for part in value.lower().split(","))
    max_age = directives.get("max-age")
    if max_age is not None and not re.fullmatch(r"[0-9]{1,9}", max_age):
        raise InvalidRequest(
            f"Cache-Control: max-age must be a number of seconds, got {max_age[:64]!r}", param=_CACHE_CONTROL
        )
    return CacheControl(
        no_store="no-store" in directives,
        no_cache="no-cache" in directives or (max_age is not None and int(max_age) == 0),
        max_age_s=int(max_age) if max_age else None,
    )


def _read_log_level(value: str) -> LogLevel:
    """The strictest level of a list."""
    try:
        return strictest(*(LogLevel(level.strip().lower()) for level in value.split(",")))
    except ValueError:
        known = ", ".join(LogLevel)
        raise InvalidRequest(f"{LOG_HEADER}: must be one of {known}, got {value[:64]!r}", param=LOG_HEADER) from None


def _directive(part: str) -> tuple[str, str]:
    name, _, value = part.strip().partition("=")
    return name.strip(), value.strip().strip('"')


def _seconds(name: str, value: str | None) -> float | None:
    """Parse a duration in the format of fal and RunPod: `90s`, `1.5m`, `500ms`, `2h`; a bare number is seconds."""
    if value is None:
        return None
    seconds = seconds_of(value.strip(), ("", "ms", "s", "m", "h"), fractions=True)
    if seconds is None or not 0 < seconds <= MAX_DURATION_S:
        raise InvalidRequest(
            f"{name}: must be a duration such as 90s or 5m (at most 30 days), got {value!r}", param=name
        )
    return seconds


Submission = Annotated[SubmitHeaders, Depends(submit_headers)]
