"""Measure which of vLLM's options pay for a model on this machine, and propose some: docs/tuning.md."""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.errors import LaunchError, SettingError
from launcher.parts import load_models
from launcher.progress import Progress
from launcher.settings import REPOSITORY, home_folder, load_settings
from shared.config.models.vllm import VllmModel
from tune.campaign import Campaign
from tune.proposal import Aim, Bounds
from tune.report import write, write_document
from tune.workload import FULL, QUICK

DOCUMENT = REPOSITORY / "docs" / "tuning.md"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make tune MODEL=name", description=__doc__)
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a vllm model of models.yaml")
    aims = [aim.value for aim in Aim]
    parser.add_argument("--for", dest="aim", choices=aims, default=aims[1], help="the aim (default: throughput)")
    parser.add_argument("--quick", action="store_true", help="fewer candidates and shorter measurements")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this candidate; repeatable")
    parser.add_argument("--output", type=Path, help="folder of the results (default: tune/MODEL in HEADRACE_HOME)")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--retry", action="store_true", help="measure again what could not be measured before")
    parser.add_argument(
        "--limit",
        type=_seconds,
        metavar="SECONDS",
        help="for one candidate (default: three times that of the baseline, at least 600)",
    )
    parser.add_argument(
        "--max-perplexity-rise", type=float, default=1.0, metavar="PERCENT", help="accepted loss (default: 1)"
    )
    parser.add_argument(
        "--min-agreement", type=float, default=0.0, metavar="PERCENT", help="of greedy tokens (default: 0)"
    )
    parser.add_argument("--write", action="store_true", help=f"also write them to {DOCUMENT.relative_to(REPOSITORY)}")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parsed(arguments)
    progress = Progress(sys.stderr)
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Also if a shell has set SIGINT to ignored, as it does for a command with `&`.
        signal.signal(sig, signal.default_int_handler)
    try:
        model = model_of(chosen.model)
        if model.adapters:
            progress.say(f"{model.name} is measured without its adapters.")
        folder = chosen.output or home_folder() / "tune" / model.name.replace("/", "-")
        campaign = Campaign(
            model,
            folder.expanduser().absolute(),
            QUICK if chosen.quick else FULL,
            Aim(chosen.aim),
            Bounds(chosen.max_perplexity_rise / 100, chosen.min_agreement / 100),
            limit=chosen.limit,
            progress=progress,
        )
        code = 0
        try:
            campaign.run(
                quick=chosen.quick, only=chosen.only, all_aims=chosen.write, fresh=chosen.fresh, retry=chosen.retry
            )
        except KeyboardInterrupt:
            progress.say("Ended. The same command continues.")
            code = 130
        text = write(campaign)
        print(text)
        if code == 0 and not campaign.has_figures:
            code = 1
        if chosen.write and code == 0:
            write_document(campaign, DOCUMENT)
    except LaunchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"Ended by an error of the operating system: {error}", file=sys.stderr)
        return 1
    return code


def model_of(name: str | None) -> VllmModel:
    """The model of models.yaml.

    Raises:
        SettingError: there is none of this name, vLLM does not run it, or it is an adapter.
    """
    file = load_settings().models
    models = load_models(file).models
    names = ", ".join(name for name, spec in models.items() if isinstance(spec, VllmModel)) or "none"
    if name is None:
        raise SettingError(f"Name a model of {file}:  make tune MODEL=name  (models of vLLM: {names})")
    model = models.get(name)
    if not isinstance(model, VllmModel):
        raise SettingError(f"{file} has no model {name!r} that runs in vLLM; it has: {names}")
    if model.adapter is not None:
        base = model.adapter.base
        raise SettingError(f"{name} is an adapter of {base}, in whose engine it runs:  make tune MODEL={base}")
    return model


def _seconds(text: str) -> float:
    """The value of `--limit`."""
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError("must be above 0")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
