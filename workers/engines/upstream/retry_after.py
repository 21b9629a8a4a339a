"""When an upstream says that a request may be repeated.

It says so in `Retry-After`, in the vendors' headers about rate limits, or in the body of the error.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

# A longer delay is taken for this one: the upstream is tried again by then.
MAX_S = 3600.0
# https://developers.openai.com/api/docs/guides/rate-limits: `6m0s`, `1s`, `20ms`.
_DURATION = re.compile(r"(?=\d)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_UNITS_S = (86400, 3600, 60, 1, 0.001)
# Numbers from here on are times since 1970, in seconds or in milliseconds.
_EPOCH_S, _EPOCH_MS = 1e9, 1e12
# OpenAI, Azure, Groq: `Please try again in 1m7.32s.`, `Please retry after 3 seconds.`
_SENTENCE = re.compile(
    r"\b(?:try again|retry) (?:in|after) (\d[\dhms.]*)(?: ?(milliseconds?|seconds?|minutes?|hours?)\b|(?! ?\w))",
    re.IGNORECASE,
)
_WORDS_S = {"milli": 0.001, "second": 1, "minute": 60, "hour": 3600}
_RESET = re.compile(r"(?:(?:anthropic|x)-)?ratelimit-(?:reset(?:-[a-z-]+)?|[a-z-]+-reset)")


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The delay until a request may be repeated, at most `MAX_S`; None if no header names one that can be parsed.

    `Retry-After` and `retry-after-ms` count first. Otherwise it is the reset of the limits that are used up, or the
    first reset if no header says which ones are.
    """
    named = {name.lower(): value.strip() for name, value in headers.items()}
    delay_s = _milliseconds(named.get("retry-after-ms", ""))
    if delay_s is None:
        delay_s = _seconds_or_date(named.get("retry-after", ""))
    if delay_s is None:
        delay_s = _reset_s(named)
    return _limited(delay_s)


def delay_in_body(error: Mapping[str, Any]) -> float | None:
    """The delay that a decoded error names, at most `MAX_S`; None if it names none.

    - Cloudflare and gateways: `retry_after`, or `retry_after_seconds`, also in `metadata`
    - Google: https://cloud.google.com/apis/design/errors#error_info, `RetryInfo`
    - OpenRouter: the headers of the limit, in `metadata`
    - a sentence of the message
    """
    for holder in (error, error.get("metadata")):
        if not isinstance(holder, dict):
            continue
        for name, unit_s in (("retry_after_ms", 0.001), ("retry_after", 1), ("retry_after_seconds", 1)):
            if (delay_s := _duration_of(holder.get(name))) is not None:
                return _limited(delay_s * unit_s)
        if isinstance(headers := holder.get("headers"), dict):
            texts = {str(name): str(value) for name, value in headers.items()}
            if (delay_s := retry_after_s(texts)) is not None:
                return delay_s
    details = error.get("details")
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict) and (delay_s := _duration_of(detail.get("retryDelay"))) is not None:
            return _limited(delay_s)
    message = error.get("message")
    return _limited(_delay_in_text(message)) if isinstance(message, str) else None


def _delay_in_text(message: str) -> float | None:
    if (found := _SENTENCE.search(message[:2000])) is None:
        return None
    number, word = found[1].rstrip("."), (found[2] or "").lower()
    unit_s = next((unit_s for start, unit_s in _WORDS_S.items() if word.startswith(start)), 1)
    delay_s = _duration_of(number)
    return None if delay_s is None else delay_s * unit_s


def _duration_of(value: Any) -> float | None:
    """A number, or a duration such as `36.5s`, in seconds."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str):
        return None
    number = _number(value)
    return _duration(value) if number is None else number


def _limited(delay_s: float | None) -> float | None:
    return None if delay_s is None else min(MAX_S, max(0.0, delay_s))


def _reset_s(headers: Mapping[str, str]) -> float | None:
    resets = {
        name: seconds
        for name, value in headers.items()
        if _RESET.fullmatch(name) and (seconds := _moment_or_duration(value)) is not None
    }
    used_up = [seconds for name, seconds in resets.items() if headers.get(name.replace("reset", "remaining")) == "0"]
    return max(used_up) if used_up else min(resets.values(), default=None)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if number == number else None


def _milliseconds(text: str) -> float | None:
    number = _number(text)
    return None if number is None else number / 1000


def _seconds_or_date(text: str) -> float | None:
    number = _duration_of(text)
    if number is not None or not text:
        return number
    try:
        return _until(parsedate_to_datetime(text))
    except (ValueError, OverflowError):  # the latter: of a year or a zone beyond all limits
        return None


def _moment_or_duration(text: str) -> float | None:
    """A reset: seconds, a duration such as `6m0s`, a time in RFC 3339, or one since 1970."""
    number = _number(text)
    if number is not None:
        if number < _EPOCH_S:
            return number
        return (number / 1000 if number >= _EPOCH_MS else number) - time.time()
    if (duration := _duration(text)) is not None:
        return duration
    try:
        return _until(datetime.fromisoformat(text))
    except ValueError:
        return None


def _duration(text: str) -> float | None:
    if (found := _DURATION.fullmatch(text)) is None:
        return None
    return sum(float(part) * unit_s for part, unit_s in zip(found.groups("0"), _UNITS_S, strict=True))


def _until(moment: datetime) -> float:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - datetime.now(UTC)).total_seconds()
