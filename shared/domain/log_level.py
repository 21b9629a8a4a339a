"""How much of a job the request log keeps. Of several levels that apply to a job, the strictest wins."""

from __future__ import annotations

from enum import StrEnum

from shared.domain.errors import InvalidRequest


class LogLevel(StrEnum):
    """How much is kept of a job, from the least to the most.

    `none`: nothing; the job's content is deleted a minute after its end. `metadata`: who used which model, when, and
    with how many tokens. `redacted`: also the request and the answer, with personal data and secrets replaced. `full`:
    the request and the answer as they are.
    """

    NONE = "none"
    METADATA = "metadata"
    REDACTED = "redacted"
    FULL = "full"

    @property
    def keeps_body(self) -> bool:
        """Whether the request and the answer are kept."""
        return self in (LogLevel.REDACTED, LogLevel.FULL)


DEFAULT_LOG_LEVEL = LogLevel.METADATA
# The header of a request that asks for a stricter level.
LOG_HEADER = "x-headrace-log"
_RANK = {level: rank for rank, level in enumerate(LogLevel)}


def strictest(*levels: LogLevel | None) -> LogLevel:
    """The level that keeps least; None: no level was set there. Without any, `DEFAULT_LOG_LEVEL`."""
    return min((level for level in levels if level is not None), key=_RANK.__getitem__, default=DEFAULT_LOG_LEVEL)


def require_log_key(level: LogLevel | None, param: str, *, has_key: bool) -> None:
    """Raise `InvalidRequest` if a level keeps bodies, but there is no key to encrypt them with."""
    if level is not None and level.keeps_body and not has_key:
        raise InvalidRequest(
            f"{param}: the level {level.value} keeps bodies, which requires HEADRACE_LOG_KEY: set it to the output of"
            " `python -m api.request_log generate-key` for all API processes",
            param=param,
        )


def level_to_store(level: LogLevel | None) -> str | None:
    """The level as a job's row has it: None for the default, which most jobs have."""
    return None if level in (None, DEFAULT_LOG_LEVEL) else str(level)


def stored_level(text: str | None) -> LogLevel:
    """The level in a job's row; NULL in rows of earlier versions.

    A level that only a newer version knows is read as `none`: this version must not keep or show more than allowed.
    """
    if text is None:
        return DEFAULT_LOG_LEVEL
    try:
        return LogLevel(text)
    except ValueError:
        return LogLevel.NONE
