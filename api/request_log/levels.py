"""Decides how much of a job the request log keeps."""

from __future__ import annotations

from dataclasses import replace

from api.keys.principal import Principal
from shared.domain.log_level import DEFAULT_LOG_LEVEL, LogLevel, strictest
from shared.domain.new_job import NewJob


class LogLevels:
    """The level of a job: the strictest of those of the installation, the project, the key and the request.

    A request with `store` false has the level `none`. Without a key to encrypt bodies with, none are kept.
    """

    def __init__(self, default: LogLevel = DEFAULT_LOG_LEVEL, *, has_key: bool = False) -> None:
        self._default = default
        self._most = LogLevel.FULL if has_key else LogLevel.METADATA

    def apply(self, principal: Principal, new: NewJob) -> NewJob:
        """The job with its level. A level that it has already is the highest possible one."""
        options, response = new.options, new.response
        is_unstored = options.store is False or (response is not None and not response.stored)
        level = strictest(
            self._default,
            self._most,
            principal.project_log_level,
            principal.options.log_level,
            options.log_level,
            new.log_level,
            LogLevel.NONE if is_unstored else None,
        )
        return replace(new, log_level=level)


NO_LEVELS = LogLevels()
