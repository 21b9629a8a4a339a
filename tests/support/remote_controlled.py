"""Runs a worker whose consumer Celery's remote control can cancel: `python -m tests.support.remote_controlled MODEL`.

Workers drop that command. Its result is the fault that the watchdog detects.
"""

from __future__ import annotations

import runpy

from workers.consumer import message_filter


def main() -> None:
    message_filter.COMMANDS |= {"cancel_consumer"}
    runpy.run_module("workers.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
