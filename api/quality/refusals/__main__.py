"""`python -m api.quality.refusals [--check]`: trains the classifier of refusals, and writes its weights."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from api.quality.refusals.examples import TEST, TRAIN, made_answers, read_answers
from api.quality.refusals.fit import fit, measure, mistakes, write
from shared.domain.refusals import WEIGHTS


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m api.quality.refusals", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only print the measurement, and write nothing")
    parsed = parser.parse_args(arguments)
    training, held_out = read_answers(TRAIN) + made_answers(), read_answers(TEST)
    classifier = fit(training)
    classifier = replace(classifier, measured=measure(classifier, held_out))
    print(f"{len(training)} answers to train with, {len(held_out)} to measure on, {len(classifier.weights)} weights")
    print(_line("all", classifier.measured))
    for language, measured in classifier.measured["languages"].items():
        print(_line(language, measured))
    for probability, answer in mistakes(classifier, held_out):
        print(f"{'missed' if answer.refused else 'taken for a refusal'} ({probability:.2f}): {answer.text}")
    if not parsed.check:
        print(f"Wrote {WEIGHTS} ({write(classifier, WEIGHTS):,} bytes).")
    return 0


def _line(name: str, measured: Mapping[str, Any]) -> str:
    parts = [f"{name}: n={measured['n']}"]
    for kind in ("precision", "recall"):
        rate = measured[kind]
        parts.append(f"{kind} {rate['rate']} ({rate['low']} to {rate['high']}, {rate['count']} of {rate['n']})")
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
