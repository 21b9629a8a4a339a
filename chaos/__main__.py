"""`python -m chaos`: inject faults while 10,000 jobs run. Exit code 0: every guarantee held; 1: one was violated."""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from chaos.campaign import names, run
from chaos.plan import Plan
from chaos.report import failures, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="seed of the load and of the order of faults (default: random)")
    parser.add_argument(
        "--jobs", type=int, default=10_000, help="inject faults until this many jobs are submitted (default: 10000)"
    )
    parser.add_argument("--once", action="store_true", help="inject each fault once, under load")
    parser.add_argument("--quick", action="store_true", help="use a lease of 2 s and short outages")
    parser.add_argument("--faults", help="comma-separated names of the faults to inject (default: all)")
    parser.add_argument("--keep", action="store_true", help="keep the process logs even if the run succeeds")
    arguments = parser.parse_args()
    try:
        faults = names(arguments.faults)
    except ValueError as error:
        parser.error(str(error))
    plan = Plan(
        seed=secrets.randbelow(10**6) if arguments.seed is None else arguments.seed,
        faults=faults,
        jobs=None if arguments.once else arguments.jobs,
        quick=arguments.quick,
    )
    folder = Path(tempfile.mkdtemp(prefix="headrace-chaos-"))
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:7.1f}  {line}", flush=True)

    say(f"seed {plan.seed}; logs in {folder}")
    result = uvloop.run(run(plan, folder, say))
    print(f"\n{table(result)}")
    broken = bool(result.verdict.broken)
    if broken:
        (folder / "failures.txt").write_text(failures(result))
        print(f"\n{failures(result)}\n\nLogs and failures.txt are in {folder}", file=sys.stderr)
    elif not arguments.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
