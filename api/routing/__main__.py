"""`python -m api.routing fit FILE --output MODEL.json`: trains the classifier that routes judge complexity by."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from api.routing.errors import RoutingModelError

DEFAULT_LEVELS = "simple,middle,complex"
DEFAULT_QUALITY = 0.95


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = _parser().parse_args(arguments)
    # Only now, so that --help and errors of the command line are quick.
    from api.routing.examples import read_examples
    from api.routing.fit import fit, write
    from api.routing.fit_report import lines

    if parsed.output.is_dir() or not parsed.output.parent.is_dir():
        print(f"cannot write {parsed.output}: it must be a file in an existing directory", file=sys.stderr)
        return 1
    try:
        examples = read_examples(parsed.file, parsed.levels)
        file, report = fit(examples, parsed.quality)
        size = write(file, parsed.output)
    except RoutingModelError as error:
        print(error, file=sys.stderr)
        return 1
    for line in lines(report):
        print(line)
    print(f"\nWrote {parsed.output} ({size:,} bytes).")
    print("To use it, set HEADRACE_ROUTING_MODEL to its path, and restart the API.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m api.routing", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    command = actions.add_parser(
        "fit",
        help="train the classifier",
        description="Trains a classifier on labelled requests, and writes it to a file for HEADRACE_ROUTING_MODEL.",
    )
    command.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="JSON lines with `prompt` or `messages`, and `label`: a level, or a number from 0 (simple) to 1",
    )
    command.add_argument("--output", type=Path, required=True, metavar="MODEL.json", help="file to write")
    command.add_argument(
        "--levels",
        type=_levels,
        default=_levels(DEFAULT_LEVELS),
        help=f"names that labels may have, simplest first, such as the models of a route (default: {DEFAULT_LEVELS})",
    )
    command.add_argument(
        "--quality",
        type=_share,
        default=DEFAULT_QUALITY,
        help="share of requests that are to get a model that suffices, in the mode `balanced` (default:"
        f" {DEFAULT_QUALITY}); `cost` allows twice as many errors, and `quality` a fifth",
    )
    return parser


def _levels(text: str) -> tuple[str, ...]:
    names = tuple(name.strip().casefold() for name in text.split(","))
    if len(names) < 2 or len(set(names)) < len(names) or not all(names):
        raise argparse.ArgumentTypeError("must be at least two different names, such as small,large")
    return names


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0.5 <= share < 1:
        raise argparse.ArgumentTypeError("must be a number from 0.5 to less than 1")
    return share


if __name__ == "__main__":
    sys.exit(main())
