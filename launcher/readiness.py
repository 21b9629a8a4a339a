"""Readiness of the stack, as reported by the API's `/readyz`."""

import json
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LOADED = re.compile(
    r'^(headrace_models_loaded_timestamp_seconds|headrace_models_reloads_total\{result="failed"\}) (\S+)$', re.MULTILINE
)
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Readiness:
    """Whether the stack is ready, and what it is waiting for."""

    ready: bool
    waiting_for: str


def ask(api_url: str) -> Readiness:
    """Query `/readyz` once: 200 means ready; otherwise the body's `checks` name what is not."""
    try:
        with _DIRECT.open(f"{api_url}/readyz", timeout=5) as response:
            return Readiness(response.status == 200, "")
    except urllib.error.HTTPError as error:
        try:
            return Readiness(False, missing(json.load(error)))
        except ValueError:
            return Readiness(False, f"the API, which returned {error.code}")
    except OSError:
        return Readiness(False, "the API to listen")


@dataclass(frozen=True)
class LoadedModels:
    """When the API read the models.yaml that it uses (Unix time), and how often it could not use a newer one."""

    at: float
    failures: float


def loaded_models(api_url: str) -> LoadedModels | None:
    """Query the API's `/metrics` once. None: it does not answer."""
    try:
        with _DIRECT.open(f"{api_url}/metrics", timeout=5) as response:
            values = _LOADED.findall(response.read().decode())
    except (OSError, ValueError):
        return None
    found = {name: float(value) for name, value in values}
    at = found.get("headrace_models_loaded_timestamp_seconds")
    return None if at is None else LoadedModels(at, found.get('headrace_models_reloads_total{result="failed"}', 0.0))


def missing(body: Mapping[str, Any]) -> str:
    """Return the failing checks of a `/readyz` body, comma-separated."""
    checks = body.get("checks", {})
    failing = [f"{name} ({state})" for name, state in _flatten(checks) if state not in ("ok", True)]
    return ", ".join(failing) or "the last check"


def _flatten(checks: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for name, state in checks.items():
        if isinstance(state, Mapping) and "status" not in state:
            found += _flatten(state, f"{prefix}{name} ")
        else:
            found.append((f"{prefix}{name}", state["status"] if isinstance(state, Mapping) else state))
    return found


def listens(host: str, port: int) -> bool:
    """Return whether the address accepts connections."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False
