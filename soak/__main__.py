"""`python -m soak`: a steady load for 30 minutes. Exit code 0: nothing grew; 1: something did, or a job failed."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from soak.drift import Bounds
from soak.run import Plan, report, run

SAMPLES = 60


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="duration of the load (default: 30)")
    parser.add_argument("--rate", type=float, default=20.0, help="jobs a second (default: 20)")
    parser.add_argument("--interval", type=float, help="seconds between samples (default: 60 samples a run)")
    parser.add_argument(
        "--database-bytes", type=int, default=10_000, help="accepted growth of the database a job (default: 10000)"
    )
    parser.add_argument("--keep", action="store_true", help="keep logs and data even if the run succeeds")
    arguments = parser.parse_args()
    if arguments.minutes <= 0 or arguments.rate <= 0:
        parser.error("--minutes and --rate must be positive")
    seconds = arguments.minutes * 60
    bounds = Bounds(database=arguments.database_bytes)
    plan = Plan(seconds, arguments.rate, arguments.interval or seconds / SAMPLES, bounds)
    folder = Path(tempfile.mkdtemp(prefix="headrace-soak-"))
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f}  {text}", flush=True)

    say(f"{plan.rate:g} jobs a second for {arguments.minutes:g} minutes; logs in {folder}")
    result = uvloop.run(run(plan, folder, say))
    print(f"\n{report(result)}")
    if result.failures:
        print("\nFAILED\n" + "\n".join(result.failures) + f"\n\nLogs and data are in {folder}", file=sys.stderr)
    elif not arguments.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return int(bool(result.failures))


if __name__ == "__main__":
    sys.exit(main())
