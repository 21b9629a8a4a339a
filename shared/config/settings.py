"""Settings that every process reads from the environment."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.config.postgres_url import asyncpg_url
from shared.config.redis_url import parse_redis_url
from shared.domain.field_types import message_of

REPOSITORY = Path(__file__).resolve().parents[2]


class SettingsGroup(BaseSettings):
    """The settings of one feature. The settings of a process inherit from the groups of its features."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", extra="ignore")


class Settings(SettingsGroup):
    """The settings that all processes share. `DATABASE_URL` and `REDIS_URL` have no `HEADRACE_` prefix."""

    database_url: str = Field(validation_alias="DATABASE_URL", description="The address of PostgreSQL.")
    redis_url: str = Field(validation_alias="REDIS_URL", description="The address of Redis or Valkey.")
    models: Path = Field(REPOSITORY / "models.yaml", description="The file that declares the models.")
    log_level: str = Field("INFO", description="The least severe level that is logged.")
    log_format: Literal["text", "json"] = Field(
        "text", description="`json`: one JSON object per line, for log collectors."
    )
    lease_s: float = Field(
        6.0, gt=0, description="A worker that does not renew its lease for this long loses its jobs."
    )
    heartbeat_s: float = Field(
        2.0, gt=0, description="Seconds after which a worker renews its lease and every process checks for lost jobs."
    )
    max_attempts: int = Field(
        3, ge=1, description="After this many deaths of its worker or engine, a job fails with `attempts_exhausted`."
    )
    log_ttl_s: int = Field(
        3600,
        ge=1,
        description="Seconds that Redis keeps the event log of an ended job; afterwards it is read from the row.",
    )
    metrics_targets: Path | None = Field(
        None,
        description="Folder in which each process registers the address of its `/metrics`, for a Prometheus on the same"
        " machine (`file_sd_configs`). `make up`: `.headrace/metrics`.",
    )

    @field_validator("database_url")
    @classmethod
    def _postgres(cls, url: str) -> str:
        return asyncpg_url(url)

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, url: str) -> str:
        parse_redis_url(url)
        return url

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, level: str) -> str:
        known = logging.getLevelNamesMapping()
        if level.upper() not in known:
            raise ValueError(f"must be one of {', '.join(known)}")
        return level


S = TypeVar("S", bound=BaseSettings)


def settings_or_exit(kind: type[S]) -> S:
    """Read the settings. If one is missing or invalid, print its variable and the error, and exit with status 2."""
    try:
        return kind()
    except ValidationError as error:
        prefix = str(kind.model_config.get("env_prefix", ""))
        for problem in error.errors(include_url=False):
            field = str(problem["ctx"]["param"] if problem["type"] == "contradiction" else problem["loc"][0])
            name = field if field.isupper() else f"{prefix}{field}".upper()
            print(f"{name}: {message_of(problem)}", file=sys.stderr)
        sys.exit(2)
