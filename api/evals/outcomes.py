"""What a comparison would be if the items without a score had one. Pure functions.

A model that has not answered an item has failed on it. If such items were left out, a model that fails on the hard ones
would look better than it is: they count as if it had given the worst answer. A judgement that failed or cannot be
parsed is nobody's fault. What it can change at most is shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from api.evals.judgements import Outcome
from api.evals.rubrics import Scale
from api.evals.statistics import Difference, Pairwise, paired_difference, unpaired_difference
from shared.domain.judgements import JudgementState

# The difference of an item for which only one of two models has an answer, of a comparison by pairs.
LOST, WON = -1.0, 1.0


@dataclass(frozen=True, slots=True)
class Gap:
    """The lowest and the highest difference that an item without one could have.

    They are equal if it is known: a model has not answered, which counts as its worst answer.
    """

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """A comparison with the items that it lacks.

    `counted`: items that a model has not answered count as its worst answers. `against_b` and `against_a`: in addition,
    all items without a score speak against one of the models; None if there are none.
    """

    counted: Difference
    against_b: Difference | None = None
    against_a: Difference | None = None

    @classmethod
    def of(cls, differences: Sequence[float], gaps: Sequence[Gap]) -> Sensitivity | None:
        """Compare with all items; None if no item lacks a score."""
        if not gaps:
            return None
        known = [*differences, *(gap.low for gap in gaps if gap.low == gap.high)]
        counted = paired_difference(known)
        if len(known) == len(differences) + len(gaps):
            return cls(counted)
        return cls(
            counted,
            paired_difference([*differences, *(gap.low for gap in gaps)]),
            paired_difference([*differences, *(gap.high for gap in gaps)]),
        )


@dataclass(frozen=True, slots=True)
class Compared:
    """The items of two models `a` and `b`. `unanswered`: those that each has not answered. `unscored`: those without a
    score although both have answered. `erased`: those whose data was erased, which count for nothing."""

    difference: Difference
    pairwise: Pairwise | None = None
    sensitivity: Sensitivity | None = None
    unanswered: tuple[int, int] = (0, 0)
    unscored: int = 0
    erased: int = 0

    @property
    def shown(self) -> Difference:
        """What says whether `b` is worse: with the items that were not answered, because a model that fails must not
        look better for it."""
        return self.difference if self.sensitivity is None else self.sensitivity.counted


@dataclass(slots=True)
class _Items:
    differences: list[float] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    unanswered: list[int] = field(default_factory=lambda: [0, 0])
    unscored: int = 0
    erased: int = 0

    def compared(self, pairwise: Pairwise | None = None) -> Compared:
        return Compared(
            pairwise.difference if pairwise is not None else paired_difference(self.differences),
            pairwise,
            Sensitivity.of(self.differences, self.gaps),
            (self.unanswered[0], self.unanswered[1]),
            self.unscored,
            self.erased,
        )


def compare_pairs(outcomes: Sequence[Outcome], *, turned: bool) -> Compared:
    """Compare by a pairwise run. `turned`: the second model of the run is `a`."""
    by_item: defaultdict[str, dict[int, Outcome]] = defaultdict(dict)
    for one in outcomes:
        by_item[one.item][one.position] = one
    items, scores = _Items(), dict[str, tuple[float, float]]()
    for item, orders in by_item.items():
        states = {one.state for one in orders.values()}
        if JudgementState.ERASED in states:
            items.erased += 1
            continue
        if len(orders) < 2 or JudgementState.PENDING in states:
            continue
        own = {position: 1 - (one.score or 0.0) if turned else one.score or 0.0 for position, one in orders.items()}
        if states == {JudgementState.SCORED}:
            scores[item] = own[1], own[2]
            items.differences.append(1 - (own[1] + own[2]))
        elif JudgementState.UNANSWERED in states:
            # As if the judge had preferred the answer that there is, in both orders.
            difference = 1 - 2 * own[1]
            items.gaps.append(Gap(difference, difference))
            for model, lost in enumerate((WON, LOST)):
                items.unanswered[model] += difference in (0.0, lost)
        else:
            items.gaps.append(Gap(LOST, WON))
            items.unscored += 1
    return items.compared(Pairwise.of(scores))


def compare_scores(outcomes: Sequence[Outcome], a: str, b: str, scale: Scale | None) -> Compared:
    """Compare by the scores of single answers to the same items. Without a scale, as of runs of earlier versions,
    items without a score are only counted."""
    by_item: defaultdict[str, dict[str, Outcome]] = defaultdict(dict)
    for one in outcomes:
        by_item[one.item][one.model] = one
    items = _Items()
    for answers in by_item.values():
        states = [answers[model].state for model in (a, b) if model in answers]
        if JudgementState.ERASED in states:
            items.erased += 1
            continue
        if len(states) < 2:
            continue
        pair = answers[a], answers[b]
        if JudgementState.PENDING in states:
            continue
        if all(state is JudgementState.SCORED for state in states):
            items.differences.append((pair[1].score or 0.0) - (pair[0].score or 0.0))
            continue
        for model, state in enumerate(states):
            items.unanswered[model] += state is JudgementState.UNANSWERED
        items.unscored += JudgementState.UNANSWERED not in states
        if scale is not None:
            first, second = (_bounds(one, scale) for one in pair)
            items.gaps.append(Gap(second[0] - first[1], second[1] - first[0]))
    return items.compared()


def _bounds(outcome: Outcome, scale: Scale) -> tuple[float, float]:
    """The lowest and the highest score that an answer may have."""
    match outcome.state:
        case JudgementState.SCORED:
            return outcome.score or 0.0, outcome.score or 0.0
        case JudgementState.UNANSWERED:
            return scale.low, scale.low
        case _:
            return scale.low, scale.high


def compare_references(first: Mapping[str, float], second: Mapping[str, float], items: Sequence[str]) -> Compared:
    """Compare by scores from 0 to 1 of the answers to items, without a judge. An answer without a score has failed."""
    found = _Items()
    for item in items:
        if item in first and item in second:
            found.differences.append(second[item] - first[item])
            continue
        difference = second.get(item, 0.0) - first.get(item, 0.0)
        found.gaps.append(Gap(difference, difference))
        for model, scores in enumerate((first, second)):
            found.unanswered[model] += item not in scores
    return found.compared()


def compare_samples(
    first: Mapping[float, int], second: Mapping[float, int], unscored: tuple[int, int], scale: Scale
) -> Compared:
    """Compare by scores of different items, given as how often each was given. `unscored`: the judgements of each model
    that failed, or cannot be parsed."""
    difference = unpaired_difference(first, second)
    if not any(unscored):
        return Compared(difference)
    low, high = float(scale.low), float(scale.high)
    bounds = [
        unpaired_difference(_with(first, ends[0], unscored[0]), _with(second, ends[1], unscored[1]))
        for ends in ((high, low), (low, high))
    ]
    return Compared(difference, None, Sensitivity(difference, *bounds), unscored=sum(unscored))


def _with(counts: Mapping[float, int], score: float, number: int) -> dict[float, int]:
    """Scores, and so many more of one of them."""
    return {**counts, score: counts.get(score, 0) + number} if number else dict(counts)
