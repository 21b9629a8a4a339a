"""Reports and comparisons as JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from api.evals.outcomes import Sensitivity
from api.evals.reports import ModelReport, RubricReport
from api.evals.service import Comparison
from api.evals.statistics import Agreement, Conclusion, Difference
from api.quality.intervals import Interval


class ConfidenceInterval(BaseModel):
    """A 95 % interval."""

    low: float
    high: float


def _interval(interval: Interval | None) -> ConfidenceInterval | None:
    return None if interval is None else ConfidenceInterval(low=interval.low, high=interval.high)


class AgreementView(BaseModel):
    """How far two raters agree."""

    n: int = Field(description="Answers that both have scored; one that several people have labelled counts once.")
    observed: float | None = Field(description="The share of equal scores.")
    kappa: float | None = Field(
        description="Cohen's kappa, with quadratic weights: 1 for perfect agreement, 0 for that of chance. Null if it"
        " is not defined."
    )
    interval: ConfidenceInterval | None

    @classmethod
    def of(cls, one: Agreement, **others: Any) -> Self:
        """The JSON form of an agreement."""
        return cls(n=one.n, observed=one.observed, kappa=one.kappa, interval=_interval(one.interval), **others)


class LabellerView(AgreementView):
    """How far the judge agrees with a person."""

    name: str | None = Field(description="The name of the person's key.")


class ModelReportView(BaseModel):
    """The scores of a model's answers."""

    model: str
    n: int
    mean: float | None = Field(description="The mean score; of a `yes/no` scale the share of yes.")
    interval: ConfidenceInterval | None
    scores: dict[str, int] = Field(description="How often each score was given.")
    pending: int
    unparsable: int = Field(description="Judgements without a score, because the judge's answer could not be parsed.")
    failed: int

    @classmethod
    def of(cls, one: ModelReport) -> Self:
        """The JSON form of a model's scores."""
        return cls(
            model=one.model,
            n=0 if one.mean is None else one.mean.n,
            mean=None if one.mean is None else one.mean.mean,
            interval=None if one.mean is None else _interval(one.mean.interval),
            scores={f"{score:g}": count for score, count in sorted(one.scores.items())},
            pending=one.pending,
            unparsable=one.unparsable,
            failed=one.failed,
        )


class ReportView(BaseModel):
    """What judges and people say of sampled answers by a rubric."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "eval.report",
                    "rubric": "helpful",
                    "scale": "1-5",
                    "judge": "large",
                    "prompt_version": "1",
                    "since": "2026-10-31T12:00:00Z",
                    "models": [
                        {
                            "model": "small",
                            "n": 180,
                            "mean": 3.9,
                            "interval": {"low": 3.7, "high": 4.1},
                            "scores": {"1": 6, "2": 14, "3": 34, "4": 64, "5": 62},
                            "pending": 2,
                            "unparsable": 3,
                            "failed": 0,
                        }
                    ],
                    "agreement": {"n": 40, "observed": 0.65, "kappa": 0.71, "interval": {"low": 0.5, "high": 0.85}},
                    "by_labeller": {
                        "key_12": {
                            "n": 40,
                            "observed": 0.65,
                            "kappa": 0.71,
                            "interval": {"low": 0.5, "high": 0.85},
                            "name": "ann",
                        }
                    },
                    "between_people": {"n": 0, "observed": None, "kappa": None, "interval": None},
                    "judge_cost_usd": 0.42,
                }
            ]
        }
    )

    object: Literal["eval.report"] = "eval.report"
    rubric: str
    scale: str
    judge: str
    prompt_version: str
    since: datetime
    models: list[ModelReportView]
    agreement: AgreementView = Field(description="Between the judge and people, of all time.")
    by_labeller: dict[str, LabellerView] = Field(description="By the id of the person's key.")
    between_people: AgreementView = Field(description="Between people: more cannot be expected of a judge.")
    judge_cost_usd: float | None

    @classmethod
    def of(cls, report: RubricReport) -> Self:
        """The JSON form of a report."""
        rubric = report.rubric
        return cls(
            rubric=rubric.name,
            scale=str(rubric.scale),
            judge=rubric.judge,
            prompt_version=rubric.prompt_version,
            since=report.since,
            models=[ModelReportView.of(one) for one in report.models],
            agreement=AgreementView.of(report.with_people),
            by_labeller={
                labeller: LabellerView.of(one, name=report.names.get(labeller))
                for labeller, one in report.by_labeller.items()
            },
            between_people=AgreementView.of(report.people),
            judge_cost_usd=None if report.cost is None else float(report.cost),
        )


class PairwiseView(BaseModel):
    """What the judge has preferred."""

    a_wins: int
    b_wins: int
    ties: int
    order_disagreement: int = Field(
        description="Items on which the judge has answered differently when the two answers were shown in the other"
        " order."
    )


class DifferenceView(BaseModel):
    """By how much `b` is better than `a`."""

    n: int = Field(description="Items, or the smaller number of scores.")
    difference: float | None
    interval: ConfidenceInterval | None
    p: float | None
    conclusion: Conclusion

    @classmethod
    def of(cls, one: Difference) -> Self:
        """The JSON form of a difference."""
        return cls(n=one.n, difference=one.mean, interval=_interval(one.interval), p=one.p, conclusion=one.conclusion)


class SensitivityView(BaseModel):
    """The comparison with the items that it lacks: what they can change."""

    failures_as_worst: DifferenceView = Field(
        description="Items that a model has not answered count as its worst answers."
    )
    unscored_against_b: DifferenceView | None = Field(
        description="And all items without a score speak against `b`. Null if there are none."
    )
    unscored_against_a: DifferenceView | None = Field(description="Or against `a`.")

    @classmethod
    def of(cls, one: Sensitivity) -> Self:
        """The JSON form of a comparison with the items that it lacks."""
        against = [None if found is None else DifferenceView.of(found) for found in (one.against_b, one.against_a)]
        return cls(
            failures_as_worst=DifferenceView.of(one.counted),
            unscored_against_b=against[0],
            unscored_against_a=against[1],
        )


class UnansweredView(BaseModel):
    """The items of a set that each model has not answered."""

    a: int
    b: int


class ComparisonView(BaseModel):
    """Whether model `b` is worse than model `a`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "eval.comparison",
                    "a": "large",
                    "b": "large-int4",
                    "rubric": "helpful",
                    "judge": "large",
                    "run_id": "evalrun_0193c2d2b7a57c1c8f9e2a4b6c8d0e1f",
                    "n": 200,
                    "difference": -0.12,
                    "interval": {"low": -0.2, "high": -0.04},
                    "p": 0.004,
                    "conclusion": "worse",
                    "pairwise": {"a_wins": 70, "b_wins": 46, "ties": 84, "order_disagreement": 38},
                    "unparsable": 2,
                    "failed": 0,
                    "pending": 0,
                    "unanswered": {"a": 0, "b": 3},
                    "unscored": 0,
                    "erased": 0,
                    "sensitivity": {
                        "failures_as_worst": {
                            "n": 203,
                            "difference": -0.133,
                            "interval": {"low": -0.21, "high": -0.05},
                            "p": 0.002,
                            "conclusion": "worse",
                        },
                        "unscored_against_b": None,
                        "unscored_against_a": None,
                    },
                }
            ]
        }
    )

    object: Literal["eval.comparison"] = "eval.comparison"
    a: str
    b: str
    rubric: str
    judge: str
    run_id: str | None = Field(description="Null: by the scores of sampled answers, which are of different requests.")
    n: int = Field(
        description="Items that both models have answered and that have a score, or the smaller number of scores."
    )
    difference: float | None = Field(
        description="By how much `b` is better; negative: it is worse. Of a pairwise run from -1 to 1, else on the"
        " rubric's scale."
    )
    interval: ConfidenceInterval | None
    p: float | None = Field(description="How likely such a difference would be if there were none.")
    conclusion: Conclusion = Field(
        description="With the items that a model has not answered: the one of `failures_as_worst`, if there are any."
    )
    pairwise: PairwiseView | None
    unparsable: int = Field(description="Judgements that cannot be parsed.")
    failed: int = Field(description="Judgements that the judge has not made.")
    pending: int
    unanswered: UnansweredView
    unscored: int = Field(description="Items, or sampled answers, without a score: judgements are missing.")
    erased: int = Field(
        description="Items whose data was erased or deleted before they were judged, which count for nothing."
    )
    sensitivity: SensitivityView | None = Field(description="Null if every item has a score.")

    @classmethod
    def of(cls, one: Comparison) -> Self:
        """The JSON form of a comparison."""
        found = one.found
        difference, pairs, sensitivity = found.difference, found.pairwise, found.sensitivity
        return cls(
            a=one.a,
            b=one.b,
            rubric=one.rubric,
            judge=one.judge_model,
            run_id=one.run_id,
            n=difference.n,
            difference=difference.mean,
            interval=_interval(difference.interval),
            p=difference.p,
            conclusion=found.shown.conclusion,
            pairwise=None
            if pairs is None
            else PairwiseView(
                a_wins=pairs.wins[0], b_wins=pairs.wins[1], ties=pairs.ties, order_disagreement=pairs.swapped
            ),
            unparsable=one.unparsable,
            failed=one.failed,
            pending=one.pending,
            unanswered=UnansweredView(a=found.unanswered[0], b=found.unanswered[1]),
            unscored=found.unscored,
            erased=found.erased,
            sensitivity=None if sensitivity is None else SensitivityView.of(sensitivity),
        )
