"""Test the manifests' autoscaling on a day's load: `day` and `sweep` in simulated time, `real` on real workers."""

from __future__ import annotations

import argparse
import asyncio
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.autoscale import manifest, page, real, sweep
from benchmarks.autoscale.keda import Autoscaler
from benchmarks.autoscale.load import DAY, HOUR, Service, between, day
from benchmarks.autoscale.model import fixed, play
from benchmarks.autoscale.policy import Policy
from benchmarks.machine import description
from launcher.settings import REPOSITORY
from shared.domain.errors import HeadraceError

PARTS = ("day", "sweep", "real")
MANIFESTS = REPOSITORY / "k8s"
DOCUMENT = REPOSITORY / "docs" / "autoscaling.md"
CHART = REPOSITORY / "docs" / "autoscaling.svg"
SEED = 1
SEEDS = (1, 2, 3)
# The hour to run on real workers, which includes the 600 jobs submitted at once in the afternoon.
REAL_FROM_H = 15.0


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.autoscale", description=__doc__)
    # Without arguments argparse checks an empty list, so that must be a choice too.
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help=f"{', '.join(PARTS)} (default: day)")
    parser.add_argument("--manifest", type=Path, default=MANIFESTS, help="manifest file or folder (default: k8s)")
    parser.add_argument("--name", default="worker", help="name of the autoscaler (default: worker)")
    parser.add_argument("--speed", type=float, default=6.0, help="real: speed-up factor (default: 6)")
    parser.add_argument("--quick", action="store_true", help="short runs that only check that everything works")
    parser.add_argument("--write", action="store_true", help=f"write tables and chart to {DOCUMENT.parent.name}/")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        policy = manifest.load(options.manifest, options.name)
    except (HeadraceError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    service = Service()
    command = shlex.join(["python", "-m", "benchmarks.autoscale", *(sys.argv[1:] if arguments is None else arguments)])
    for part in options.parts or ["day"]:
        text = {"day": day_report, "sweep": sweep_report, "real": real_report}[part](policy, service, options)
        print(text)
        if options.write:
            document = DOCUMENT.read_text()
            DOCUMENT.write_text(page.block(part, f"{text}\n\n{machine(command)}", document))
    return 0


def day_report(policy: Policy, service: Service, options: argparse.Namespace) -> str:
    """Return the table of one day with the manifest, compared to fixed fleets."""
    until = 3 * HOUR if options.quick else DAY
    arrivals = between(day(SEED, service), 0.0, until)
    scaled = play(arrivals, service, policy, until)
    rows = {"autoscaled": page.figures(scaled)}
    fleets = {count: fixed(arrivals, service, count, until) for count in range(3, policy.max_replicas + 1)}
    rows |= {f"{count} workers": page.figures(course) for count, course in fleets.items()}
    if options.write:
        # Compare to the smallest fixed fleet whose p95 wait is not longer.
        count = min(
            (count for count, course in fleets.items() if course.wait(0.95) <= scaled.wait(0.95)), default=max(fleets)
        )
        CHART.write_text(page.chart(scaled, fleets[count], f"{count} workers", until / HOUR))
    return page.day_table(rows)


def sweep_report(policy: Policy, service: Service, options: argparse.Namespace) -> str:
    """Return the best of all settings over several days, and the tables of settings."""
    seeds = SEEDS[:1] if options.quick else SEEDS
    found = list(sweep.scores(sweep.grid(quick=options.quick), policy, service, seeds))
    best = sweep.best(found)
    variations = [] if options.quick else list(sweep.scores(sweep.around(best.setting), policy, service, seeds))
    shown = sorted(found, key=lambda score: score.rank)[:12]
    return "\n\n".join(
        (
            f"Best of {len(found)}: {best.setting}.",
            page.sweep_table(shown),
            *(["Other settings, changed one at a time:", page.sweep_table([best, *variations])] if variations else []),
        )
    )


def real_report(policy: Policy, service: Service, options: argparse.Namespace) -> str:
    """Return the table of an hour on real workers, compared to the model."""
    length = 240.0 if options.quick else HOUR
    arrivals = between(day(SEED, service), REAL_FROM_H * HOUR, REAL_FROM_H * HOUR + length)
    modelled = play(arrivals, service, policy, length)
    folder = Path(tempfile.mkdtemp(prefix="headrace-autoscale-"))
    try:
        with real.stack(folder, service, options.speed) as system:
            scaler = Autoscaler(policy)
            course = asyncio.run(real.play(system, folder, arrivals, service, scaler, length, options.speed))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return page.real_table(page.figures(modelled), page.figures(course))


def machine(command: str) -> str:
    """Return one line with date, commit, machine and command."""
    lines = description("cpu")
    return f"Measured on {lines['date']} at commit {lines['commit']}, CPU cores: {lines['cores']}. Command: `{command}`"


if __name__ == "__main__":
    sys.exit(main())
