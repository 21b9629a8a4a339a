"""Is everything up? The API's `/readyz` knows; this asks it."""

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Readiness:
    """Ready or not, and what is still missing."""

    ready: bool
    waiting_for: str


def ask(api_url: str) -> Readiness:
    """One question to `/readyz`: 200 is ready; else its `checks` say what is not."""
    try:
        with _DIRECT.open(f"{api_url}/readyz", timeout=5) as answer:
            return Readiness(answer.status == 200, "")
    except urllib.error.HTTPError as error:
        try:
            return Readiness(False, missing(json.load(error)))
        except ValueError:
            return Readiness(False, f"the API answers {error.code}")
    except OSError:
        return Readiness(False, "the API to listen")


def missing(body: Mapping[str, Any]) -> str:
    """The checks of a `/readyz` body that are not "ok", in words."""
    checks = body.get("checks", {})
    open_checks = [f"{name} ({state})" for name, state in _flat(checks) if state not in ("ok", True)]
    return ", ".join(open_checks) or "the last check"


def _flat(checks: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for name, state in checks.items():
        if isinstance(state, Mapping) and "status" not in state:
            found += _flat(state, f"{prefix}{name} ")
        else:
            found.append((f"{prefix}{name}", state["status"] if isinstance(state, Mapping) else state))
    return found


def listens(host: str, port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False
