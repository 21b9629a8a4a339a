"""A server with scripted responses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.scripted_api import ScriptedApi, scripted_api


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ScriptedApi]:
    """The server. No installation runs on this machine."""
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    with scripted_api() as server:
        yield server
