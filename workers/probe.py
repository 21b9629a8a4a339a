"""`python -m workers.probe alive|ready`: asks the worker beside it, by its beacon's file. Standard library only.

alive: its loop turns, or it is starting a dead engine again, which takes the loop as long as the engine loads.
ready: its loop turns and its engine takes jobs.

A worker that cannot reach its servers is alive: it waits for them, and another process would have to wait too.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

STALE_S = 30.0


def verdict(question: str, file: Path, now: float) -> str | None:
    """Why the answer is no; None where it is yes."""
    try:
        state, age_s = file.read_text(), now - file.stat().st_mtime
    except FileNotFoundError:
        return "the worker's engine has not started yet"
    if state == "restarting":
        return None if question == "alive" else "the worker's engine is starting again"
    if age_s > STALE_S:
        return f"the worker's last heartbeat was {age_s:.0f} s ago"
    if question == "ready" and state != "ready":
        return f"the worker is {state}"
    return None


def main(arguments: list[str]) -> int:
    """Exit code 0: yes; 1: no, with the reason."""
    file = os.environ.get("HEADRACE_BEACON")
    if arguments not in (["alive"], ["ready"]) or not file:
        print("usage: HEADRACE_BEACON=FILE python -m workers.probe alive|ready", file=sys.stderr)
        return 2
    reason = verdict(arguments[0], Path(file), time.time())
    if reason is not None:
        print(reason, file=sys.stderr)
    return 0 if reason is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
