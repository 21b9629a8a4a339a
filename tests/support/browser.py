"""A browser: `chromium` on PATH, for example from Debian's package of that name."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs `chromium` on PATH; Debian: apt-get install chromium"
)
OPTIONS = (
    "--headless",
    "--no-sandbox",  # Chromium does not start as root with a sandbox
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    # Virtual time stops while a request is open, so this waits for the page and not for a fixed time.
    "--virtual-time-budget=10000",
)


@dataclass(frozen=True)
class Rendered:
    """A page after its scripts have run."""

    dom: str
    console: list[str]


def render(url: str, profile: Path) -> Rendered:
    """Open a page in a browser that can reach only 127.0.0.1."""
    assert CHROMIUM is not None
    finished = subprocess.run(
        [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", "--dump-dom", url],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Rendered(finished.stdout, [line for line in finished.stderr.splitlines() if ":CONSOLE" in line])
