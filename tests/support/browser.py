"""A real browser, of Debian's package `chromium` or another Chromium on PATH."""

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
    "--no-sandbox",  # it refuses to start as root with one
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    # Virtual time stands still while a request is open, so this waits for the page and not for a clock.
    "--virtual-time-budget=10000",
)


@dataclass(frozen=True)
class Rendered:
    """A page after its scripts have run."""

    dom: str
    console: list[str]


def render(url: str, profile: Path) -> Rendered:
    """Open a page in a browser that reaches 127.0.0.1 only."""
    assert CHROMIUM is not None
    finished = subprocess.run(
        [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", "--dump-dom", url],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Rendered(finished.stdout, [line for line in finished.stderr.splitlines() if ":CONSOLE" in line])
