"""The version, which requests to upstreams carry."""

from __future__ import annotations

import tomllib
from pathlib import Path

from shared.domain.version import VERSION

PYPROJECT = Path(__file__).resolve().parents[4] / "pyproject.toml"


def test_it_is_the_one_of_the_project() -> None:
    assert tomllib.loads(PYPROJECT.read_text())["project"]["version"] == VERSION
