"""Try the manifests' autoscaling on a day's load: `day` and `sweep` in simulated time, `real` on the real queue."""

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
# Played on the real queue: the hour of the afternoon heap.
REAL_FROM_H = 15.0


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.autoscale", description=__doc__)
    # Without any it is given an empty list, which must be a choice too.
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help=f"{', '.join(PARTS)} (default: day)")
    parser.add_argument("--manifest", type=Path, default=MANIFESTS, help="a file, or a folder (default: k8s)")
    parser.add_argument("--name", default="worker", help="the autoscaler's name in it (default: worker)")
    parser.add_argument("--speed", type=float, default=6.0, help="real: how many times faster (default: 6)")
    parser.add_argument("--quick", action="store_true", help="small parts, to see that all works; no figures to keep")
    parser.add_argument("--write", action="store_true", help=f"write tables and chart to {DOCUMENT.parent.name}/")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parsed(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        policy = manifest.load(chosen.manifest, chosen.name)
    except (HeadraceError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    service = Service()
    command = shlex.join(["python", "-m", "benchmarks.autoscale", *(sys.argv[1:] if arguments is None else arguments)])
    for part in chosen.parts or ["day"]:
        text = {"day": of_day, "sweep": of_sweep, "real": of_real}[part](policy, service, chosen)
        print(text)
        if chosen.write:
            document = DOCUMENT.read_text()
            DOCUMENT.write_text(page.block(part, f"{text}\n\n{machine(command)}", document))
    return 0


def of_day(policy: Policy, service: Service, chosen: argparse.Namespace) -> str:
    """One day: the manifest beside fixed fleets."""
    until = 3 * HOUR if chosen.quick else DAY
    arrivals = between(day(SEED, service), 0.0, until)
    scaled = play(arrivals, service, policy, until)
    rows = {"autoscaled": page.figures(scaled)}
    fleets = {count: fixed(arrivals, service, count, until) for count in range(3, policy.max_replicas + 1)}
    rows |= {f"{count} workers": page.figures(course) for count, course in fleets.items()}
    if chosen.write:
        # Beside the smallest fixed fleet that lets jobs wait no longer.
        count = min(
            (count for count, course in fleets.items() if course.wait(0.95) <= scaled.wait(0.95)), default=max(fleets)
        )
        CHART.write_text(page.chart(scaled, fleets[count], f"{count} workers", until / HOUR))
    return page.day_table(rows)


def of_sweep(policy: Policy, service: Service, chosen: argparse.Namespace) -> str:
    """All settings, on several days, and which is best."""
    seeds = SEEDS[:1] if chosen.quick else SEEDS
    found = list(sweep.scores(sweep.grid(quick=chosen.quick), policy, service, seeds))
    best = sweep.best(found)
    near = [] if chosen.quick else list(sweep.scores(sweep.around(best.setting), policy, service, seeds))
    shown = sorted(found, key=lambda score: (not score.good, score.gpu_hours if score.good else score.p95))[:12]
    return "\n\n".join(
        (
            f"Best of {len(found)}: {best.setting}.",
            page.sweep_table(shown),
            *(["Other settings, changed one at a time:", page.sweep_table([best, *near])] if near else []),
        )
    )


def of_real(policy: Policy, service: Service, chosen: argparse.Namespace) -> str:
    """An hour on the real queue, and what the model says of the same jobs."""
    length = 240.0 if chosen.quick else HOUR
    arrivals = between(day(SEED, service), REAL_FROM_H * HOUR, REAL_FROM_H * HOUR + length)
    modelled = play(arrivals, service, policy, length)
    folder = Path(tempfile.mkdtemp(prefix="headrace-autoscale-"))
    try:
        with real.stack(folder, service, chosen.speed) as system:
            course = asyncio.run(real.play(system, folder, arrivals, service, Autoscaler(policy), length, chosen.speed))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return page.real_table(page.figures(modelled), page.figures(course))


def machine(command: str) -> str:
    """What it was measured on, in a line."""
    lines = description("cpu")
    return f"Measured on {lines['date']} at commit {lines['commit']}, CPU cores: {lines['cores']}. Command: `{command}`"


if __name__ == "__main__":
    sys.exit(main())
