"""Which options to use for an aim, by a rule that docs/tuning.md states."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import yaml

from shared.config.models.vllm import VllmModel
from tune.candidates import BASELINE, COMBINED, GROUPS, UNQUANTIZED, Candidate, entry_of
from tune.results import Row, agreement

# A gain below this share may be chance.
NOISE = 0.03
# The answer whose time counts for the latency.
ANSWER_TOKENS = 128
# Streams from which on a machine counts as busy.
BUSY = 16
# The share of the baseline's speed that saving memory may not fall below.
SLOWEST = 0.8


class Aim(StrEnum):
    LATENCY = "latency"
    THROUGHPUT = "throughput"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Bounds:
    """The loss of quality that is accepted.

    Args:
        perplexity: the rise over the reference, as a share.
        agreement: the least share of greedy tokens that equal the reference's.
    """

    perplexity: float = 0.01
    agreement: float = 0.0


def reference_of(rows: Iterable[Row]) -> Row | None:
    """The row whose quality the others are compared to: the model as it is, not quantized."""
    by_name = {row.name: row for row in rows if row.problem is None}
    return by_name.get(UNQUANTIZED) or by_name.get(BASELINE)


def perplexity_rise(row: Row, reference: Row | None) -> float | None:
    """By which share a candidate's perplexity is above the reference's."""
    ours, theirs = row.figures.perplexity, reference.figures.perplexity if reference else None
    return None if ours is None or not theirs else ours / theirs - 1


def agreement_of(row: Row, reference: Row | None) -> float | None:
    return agreement(row.figures.answers, reference.figures.answers) if reference else None


def cost(row: Row, aim: Aim) -> float:
    """What the aim makes small; infinite if it was not measured.

    Latency: seconds of an answer of `ANSWER_TOKENS` tokens alone. Throughput: seconds for a token, the geometric mean
    over the numbers of streams from `BUSY` on. Memory: bytes.
    """
    figures = row.figures
    if aim is Aim.LATENCY:
        if 1 not in figures.speed or 1 not in figures.first_token:
            return math.inf
        return figures.first_token[1] + (ANSWER_TOKENS - 1) / figures.speed[1]
    if aim is Aim.THROUGHPUT:
        speeds = [speed for streams, speed in figures.speed.items() if streams >= BUSY]
        return math.exp(-sum(map(math.log, speeds)) / len(speeds)) if speeds else math.inf
    return float(figures.gpu_memory or figures.memory or math.inf)


def eligible(rows: Sequence[Row], aim: Aim, bounds: Bounds) -> list[Row]:
    """The candidates that ran, whose quality is within the bounds. The baseline always is, if it ran."""
    return [
        row
        for row in rows
        if row.problem is None and not math.isinf(cost(row, aim)) and objection(row, rows, aim, bounds) is None
    ]


def objection(row: Row, rows: Sequence[Row], aim: Aim, bounds: Bounds) -> str | None:
    """Why a candidate that ran is not to be used, whatever it would gain; None if nothing speaks against it."""
    if row.name == BASELINE:
        return None
    reference = reference_of(rows)
    rise, same = perplexity_rise(row, reference), agreement_of(row, reference)
    if rise is None or same is None:
        return "its quality was not measured"
    if rise > bounds.perplexity:
        return f"its perplexity is {rise:.1%} higher, and {bounds.perplexity:.1%} is accepted"
    if same < bounds.agreement:
        return f"{same:.0%} of its greedy tokens are as before, and at least {bounds.agreement:.0%} are required"
    baseline = next((other for other in rows if other.name == BASELINE and other.problem is None), None)
    if aim is Aim.MEMORY and not _fast_enough(row, baseline):
        return f"it has less than {SLOWEST:.0%} of the tokens/s at {BUSY} and more streams"
    return None


def _fast_enough(row: Row, baseline: Row | None) -> bool:
    if baseline is None:
        return True
    return cost(row, Aim.THROUGHPUT) * SLOWEST <= cost(baseline, Aim.THROUGHPUT)


def combined(rows: Sequence[Row], aim: Aim, bounds: Bounds) -> Candidate | None:
    """The best change of each group together; None if fewer than two groups improve on the baseline."""
    candidates = eligible(rows, aim, bounds)
    baseline = next((row for row in candidates if row.name == BASELINE), None)
    if baseline is None:
        return None
    winners = []
    for group in GROUPS:
        better = [
            row for row in candidates if row.group == group and cost(row, aim) < cost(baseline, aim) * (1 - NOISE)
        ]
        if better:
            winners.append(min(better, key=lambda row: cost(row, aim)))
    if len(winners) < 2:
        return None
    changes: dict[str, Any] = {}
    for row in winners:
        changes |= row.changes
    return Candidate(" + ".join(row.name for row in winners), COMBINED, changes)


def choose(rows: Sequence[Row], aim: Aim, bounds: Bounds) -> Row | None:
    """The candidate to use: of those within `NOISE` of the best, the one that changes least. None if none ran."""
    candidates = eligible(rows, aim, bounds)
    if not candidates:
        return None
    best = min(cost(row, aim) for row in candidates)
    close = [row for row in candidates if cost(row, aim) <= best / (1 - NOISE)]
    return min(close, key=lambda row: (len(row.changes), cost(row, aim)))


def block(model: VllmModel, row: Row) -> str:
    """The lines of the model's entry in models.yaml that a candidate stands for, ready to paste."""
    entry = entry_of(model, row.changes)
    shown = {name: entry[name] for name in ("start", "options") if entry.get(name)}
    if "model" in row.changes:
        shown = {"model": entry["model"], **shown}
    text = yaml.safe_dump(shown, sort_keys=False, default_flow_style=False, width=100)
    return "".join(f"    {line}\n" for line in text.splitlines())


def reason(row: Row, rows: Sequence[Row], aim: Aim, bounds: Bounds) -> str:
    """Why this candidate, in a sentence or two, and why none of those that would gain more."""
    return " ".join([_gain_of(row, rows, aim), *_refused(row, rows, aim, bounds)])


def _refused(chosen: Row, rows: Sequence[Row], aim: Aim, bounds: Bounds) -> list[str]:
    """A sentence for each candidate that would gain clearly more than the chosen one, but may not be used."""
    better = [row for row in rows if row.problem is None and cost(row, aim) < cost(chosen, aim) * (1 - NOISE)]
    return [
        f"Not {row.name} ({_measure(cost(row, aim), aim)}): {why}."
        for row in sorted(better, key=lambda row: cost(row, aim))
        if (why := objection(row, rows, aim, bounds)) is not None
    ]


def _gain_of(row: Row, rows: Sequence[Row], aim: Aim) -> str:
    baseline = next((other for other in rows if other.name == BASELINE and other.problem is None), None)
    if baseline is None:
        return f"{row.name}: {_measure(cost(row, aim), aim)}. models.yaml as it is could not be measured."
    if row is baseline:
        return f"No change that may be used is better by more than {NOISE:.0%}: {_measure(cost(row, aim), aim)}."
    gain = (
        cost(baseline, aim) / cost(row, aim) - 1 if aim is not Aim.MEMORY else 1 - cost(row, aim) / cost(baseline, aim)
    )
    word = {Aim.LATENCY: "faster", Aim.THROUGHPUT: "more", Aim.MEMORY: "less"}[aim]
    reference = reference_of(rows)
    rise, same = perplexity_rise(row, reference), agreement_of(row, reference)
    quality = f" Perplexity {rise:+.2%}; {same:.0%} of greedy tokens as before." if rise is not None and same else ""
    return f"{row.name}: {_measure(cost(row, aim), aim)}, {gain:.0%} {word} than with models.yaml as it is.{quality}"


def _measure(value: float, aim: Aim) -> str:
    """What a cost means."""
    if aim is Aim.LATENCY:
        return f"an answer of {ANSWER_TOKENS} tokens alone takes {value:.2f} s"
    if aim is Aim.THROUGHPUT:
        return f"{1 / value:.0f} tokens/s at {BUSY} and more streams"
    return f"{value / 1e6:.0f} MB at the peak"
