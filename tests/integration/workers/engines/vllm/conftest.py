"""Fixtures of tests with vLLM."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.compilation import compilation_manager


@pytest.fixture(scope="session")
def manager() -> Any:
    """The part of vLLM's manager that compiles, without an engine."""
    return compilation_manager()
