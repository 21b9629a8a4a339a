"""Core dumps would contain prompts, answers and keys."""

from __future__ import annotations

import resource


def forbid_core_dumps() -> None:
    """Let this process and its children write no core dumps."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
