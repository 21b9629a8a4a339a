"""Settings of `make up`, read from the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import SettingError

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Settings:
    """Validated settings. None means an embedded server or a generated secret."""

    engine: str
    home: Path
    models: Path
    host: str
    port: int
    flower_address: str
    flower_port: int
    flower_password: str | None
    api_key: str | None
    workers: int
    database_url: str | None
    redis_url: str | None
    start_timeout_s: int
    drain_s: int
    lease_s: float
    console: bool

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def local_host(self) -> str:
        """The address at which this machine reaches the API."""
        return "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host

    @property
    def api_url(self) -> str:
        return f"http://{_in_url(self.local_host)}:{self.port}"

    @property
    def flower_url(self) -> str:
        host = "127.0.0.1" if self.flower_address in ("0.0.0.0", "::") else self.flower_address
        return f"http://{_in_url(host)}:{self.flower_port}"


def load_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read and validate the environment; raises `SettingError` naming the variable."""
    engine = environ.get("ENGINE") or "cpu"
    models = "models.simulated.yaml" if engine == "simulated" else "models.yaml"
    settings = Settings(
        engine=engine,
        home=home_folder(environ),
        models=_path(environ, "HEADRACE_MODELS", models),
        host=environ.get("HEADRACE_HOST") or "127.0.0.1",
        port=_number(environ, "HEADRACE_PORT", 8000, 1, 65535),
        flower_address=environ.get("HEADRACE_FLOWER_ADDRESS") or "127.0.0.1",
        flower_port=_number(environ, "HEADRACE_FLOWER_PORT", 5555, 1, 65535),
        flower_password=environ.get("HEADRACE_FLOWER_PASSWORD") or None,
        api_key=environ.get("HEADRACE_API_KEY") or None,
        workers=_number(environ, "HEADRACE_WORKERS", 1, 0, 64),
        database_url=_url(environ, "DATABASE_URL", ("postgresql", "postgres"), "postgresql://user:password@host/name"),
        redis_url=_url(environ, "REDIS_URL", ("redis", "rediss", "unix"), "redis://host:6379/0"),
        start_timeout_s=_number(environ, "HEADRACE_START_TIMEOUT_S", 900, 1, 86400),
        drain_s=_number(environ, "HEADRACE_DRAIN_S", 5, 0, 86400),
        lease_s=_seconds(environ, "HEADRACE_LEASE_S", 6.0),
        console=environ.get("HEADRACE_CONSOLE", "on") != "off",
    )
    if settings.api_key is not None and len(settings.api_key) < 16:
        raise SettingError("HEADRACE_API_KEY must have at least 16 characters; leave it unset to generate one.")
    if settings.port == settings.flower_port:
        raise SettingError(f"HEADRACE_PORT and HEADRACE_FLOWER_PORT are both {settings.port}; they must differ.")
    if "," in (settings.flower_password or ""):
        raise SettingError("HEADRACE_FLOWER_PASSWORD has a comma, which Flower treats as a separator; remove it.")
    return settings


def home_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder with the state of the installation."""
    return _path(environ, "HEADRACE_HOME", ".headrace")


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _path(environ: Mapping[str, str], name: str, default: str) -> Path:
    return (REPOSITORY / Path(environ.get(name) or default).expanduser()).resolve()


def _number(environ: Mapping[str, str], name: str, default: int, minimum: int, maximum: int) -> int:
    text = environ.get(name) or str(default)
    try:
        number = int(text)
    except ValueError:
        number = minimum - 1
    if not minimum <= number <= maximum:
        raise SettingError(f"{name}={text} must be a whole number from {minimum} to {maximum}.")
    return number


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name) or str(default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise SettingError(f"{name}={text} must be a number of seconds, at most 86400.")
    return seconds


def _url(environ: Mapping[str, str], name: str, schemes: tuple[str, ...], example: str) -> str | None:
    url = environ.get(name) or None
    if url is not None:
        scheme, separator, rest = url.partition("://")
        if not separator or not rest or scheme.partition("+")[0] not in schemes:
            # The value is not printed: it may contain a password.
            raise SettingError(f"{name} must be a URL like {example}; leave it unset for the embedded server.")
        if name == "DATABASE_URL":
            return f"postgresql+asyncpg://{rest}"
    return url
