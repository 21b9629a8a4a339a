"""Settings that every process reads from the environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

REPOSITORY = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """Where the database, Redis and the models are. `DATABASE_URL` and `REDIS_URL` carry no prefix."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", extra="ignore")

    database_url: str = Field(validation_alias="DATABASE_URL")
    redis_url: str = Field(validation_alias="REDIS_URL")
    models: Path = REPOSITORY / "models.yaml"
    log_level: str = "INFO"
    lease_s: float = Field(6.0, gt=0, description="A worker silent for this long has lost its jobs.")
    heartbeat_s: float = Field(2.0, gt=0)
    max_attempts: int = Field(3, ge=1, description="Worker deaths that a job survives.")
    log_ttl_s: int = Field(3600, ge=1, description="How long a finished job's log stays in Redis.")

    @field_validator("database_url")
    @classmethod
    def _asyncpg(cls, url: str) -> str:
        scheme, separator, rest = url.partition("://")
        if not separator or scheme.partition("+")[0] not in ("postgresql", "postgres"):
            raise ValueError("must be a PostgreSQL address: postgresql://user:password@host:port/database")
        return f"postgresql+asyncpg://{rest}"

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, url: str) -> str:
        if not url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must be a Redis address: redis://host:port/0")
        return url
