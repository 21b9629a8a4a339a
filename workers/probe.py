"""`python -m workers.probe alive|ready`: checks the worker of this container by its heartbeat file.

alive: the event loop runs, or the worker is restarting its engine, which may block the loop while it loads.
ready: the event loop runs, and the engine accepts jobs.

A worker that cannot reach the database or Redis is alive: restarting it would not help. This module uses the standard
library only.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

STALE_S = 30.0


def failure(check: str, file: Path, now: float) -> str | None:
    """Why a check fails, or None if it succeeds."""
    try:
        state, age_s = file.read_text(), now - file.stat().st_mtime
    except FileNotFoundError:
        return "the worker's engine has not started yet"
    if state == "restarting":
        return None if check == "alive" else "the worker's engine is restarting"
    if age_s > STALE_S:
        return f"the worker's last heartbeat was {age_s:.0f} s ago"
    if check == "ready" and state != "ready":
        return f"the worker is {state}"
    return None


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 if the check succeeds, 1 if it fails, 2 if the call is wrong."""
    file = os.environ.get("HEADRACE_BEACON")
    if arguments not in (["alive"], ["ready"]) or not file:
        print("usage: HEADRACE_BEACON=FILE python -m workers.probe alive|ready", file=sys.stderr)
        return 2
    reason = failure(arguments[0], Path(file), time.time())
    if reason is not None:
        print(reason, file=sys.stderr)
    return 0 if reason is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
