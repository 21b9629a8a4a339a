"""The lock files have what `pyproject.toml` names."""

from __future__ import annotations

import re
import tomllib

import pytest

from launcher.bootstrap import LOCKS, REPOSITORY


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9._-]", line)[0].lower().replace("_", "-") for line in requirements} - {""}


@pytest.mark.parametrize("lock", ["cpu", "gpu", "simulated"])
def test_a_lock_has_all_direct_dependencies(lock: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    direct = names(project["dependencies"] + project["optional-dependencies"].get(lock, []))
    locked = names([line for line in (LOCKS / f"{lock}.txt").read_text().splitlines() if not line.startswith("#")])
    assert direct - locked == set()
