"""Reports on what judges and people have said by a rubric."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from api.evals.labels import Pair
from api.evals.rubrics import Rubric
from api.evals.scores import ModelScores
from api.evals.statistics import Agreement, agreement
from api.quality.intervals import Mean, mean_of_scores
from shared.domain.judgements import JudgementState


@dataclass(frozen=True, slots=True)
class ModelReport:
    """A model's scores: the mean with its interval (of a `yes/no` scale the share of yes), and what has no score."""

    model: str
    mean: Mean | None
    scores: dict[float, int]
    pending: int
    unparsable: int
    failed: int


@dataclass(frozen=True, slots=True)
class RubricReport:
    """What judges and people have said by a rubric. `people`: how far two people agree with each other. `names`: of
    the labellers."""

    rubric: Rubric
    since: datetime
    models: Sequence[ModelReport]
    with_people: Agreement
    by_labeller: dict[str, Agreement]
    people: Agreement
    cost: Decimal | None
    names: Mapping[str, str] = field(default_factory=dict)


def build_report(
    rubric: Rubric,
    since: datetime,
    models: Sequence[ModelScores],
    pairs: Sequence[Pair],
    people: Sequence[Pair],
    cost: Decimal | None,
    names: Mapping[str, str],
) -> RubricReport:
    """The report, of scores by model, and of pairs of scores of the same answers."""
    scale = list(rubric.scale.scores)
    by_labeller: defaultdict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_labeller[pair.labeller].append(pair)
    return RubricReport(
        rubric=rubric,
        since=since,
        models=[
            ModelReport(
                one.model,
                mean_of_scores(one.scores, yes_no=rubric.scale.yes_no),
                one.scores,
                one.of(JudgementState.PENDING),
                one.of(JudgementState.UNPARSABLE),
                one.of(JudgementState.FAILED),
            )
            for one in models
        ],
        with_people=agreement(_by_answer(pairs), scale),
        by_labeller={name: agreement(_by_answer(found), scale) for name, found in sorted(by_labeller.items())},
        people=agreement(_by_answer(people), scale),
        cost=cost,
        names=names,
    )


def _by_answer(pairs: Sequence[Pair]) -> list[list[tuple[int, int]]]:
    found: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for pair in pairs:
        found[pair.item].append((pair.first, pair.second))
    return list(found.values())
