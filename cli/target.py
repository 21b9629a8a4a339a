"""Which installation a command talks to, and with which API key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cli.errors import CannotConnect, Refused, UsageError
from launcher.home import read_environment
from launcher.settings import home_folder

NOT_RUNNING = "Is it running? Start it:  make up  (or: headrace up)"
ELSEWHERE = (
    "If it was started with HEADRACE_HOME, set that here too."
    " For an installation elsewhere, set HEADRACE_URL and HEADRACE_API_KEY."
)


@dataclass(frozen=True)
class Target:
    """The address of an API, without a trailing slash. `local`: it is the installation of `make up` on this machine."""

    url: str
    api_key: str | None
    local: bool

    @property
    def hint(self) -> str:
        """What to do if it cannot be reached."""
        return NOT_RUNNING if self.local else "Is HEADRACE_URL right, and reachable from here?"


def find_target(url: str | None, environ: Mapping[str, str] = os.environ) -> Target:
    """The installation at `url`, or else the running one of `make up`, as the launcher has written it to HEADRACE_HOME.

    A key that is stored on this machine is sent to the installation that it belongs to and to no other.
    """
    home = home_folder(environ)
    key = environ.get("HEADRACE_API_KEY") or None
    own = _running(home)
    if url:
        url = _checked(url)
        if own != url:
            return Target(url, key, local=False)
    if own is None:
        raise CannotConnect(f"Headrace is not running in {home}.", f"{NOT_RUNNING}. {ELSEWHERE}")
    return Target(own, key or _stored_key(home), local=True)


def _running(home: Path) -> str | None:
    """The address of the installation that runs on this machine; None if none does."""
    try:
        return read_environment(home / "env").get("HEADRACE_URL")
    except OSError:
        return None


def _stored_key(home: Path) -> str | None:
    try:
        return (home / "api_key").read_text().strip() or None
    except FileNotFoundError:
        return None  # `make up` was started with a key of its own
    except PermissionError:
        raise Refused(
            f"The API key of this installation, in {home}, can be read by another user only.", "Set HEADRACE_API_KEY."
        ) from None


def _checked(url: str) -> str:
    """The address without `/v1`, which OpenAI's clients need at its end."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UsageError("The address must be a URL such as http://127.0.0.1:8000.", "Check --url or HEADRACE_URL.")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")
