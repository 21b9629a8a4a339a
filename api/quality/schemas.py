"""The report on quality as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from api.quality.intervals import Interval, Mean, Rate
from api.quality.service import QualityItem, Scores
from shared.domain.refusals import classifier


class IntervalView(BaseModel):
    """`low` and `high` are the ends of a 95 % interval; null if there are too few observations for one."""

    low: float | None
    high: float | None


class RateView(IntervalView):
    """A rate, with Wilson's score interval."""

    count: int
    n: int = Field(description="The observations.")
    rate: float | None = Field(description="`count / n`; null without observations.")

    @classmethod
    def of(cls, rate: Rate, **others: Any) -> Self:
        """The JSON form of a rate."""
        return cls(count=rate.count, n=rate.n, rate=rate.rate, **_ends(rate.interval), **others)


class RefusalsView(RateView):
    """The answers in which the model has refused to answer, of those for which that is known."""

    by_provider: int = Field(description="Those that the provider says are refusals.")
    by_classifier: int = Field(description="Those that the classifier takes for refusals: see `refusal_classifier`.")


class ScoresView(IntervalView):
    """The scores that judges have given by a rubric. Of a `yes/no` scale, the mean is the share of yes and has Wilson's
    interval; others have the percentile interval of a bootstrap."""

    rubric: str
    prompt_version: str = Field(description="The version of the judge's prompt.")
    judge: str = Field(description="The model that judges.")
    scale: str | None = Field(description="`yes/no`, or a range such as `1-5`; null if it is not known.")
    run_id: str = Field(description="The live run. A rubric that has changed has another one: their scores differ.")
    n: int = Field(description="The scores.")
    mean: float | None
    unparsable: int = Field(description="Judgements that could not be read, which are not in the mean.")
    failed: int = Field(description="Judgements whose job has failed.")

    @classmethod
    def of(cls, scores: Scores) -> Self:
        """The JSON form of scores."""
        mean, rubric = scores.mean or Mean(0.0, 0, None), scores.rubric
        return cls(
            rubric=rubric.name,
            prompt_version=rubric.prompt_version,
            judge=rubric.judge,
            scale=rubric.scale or None,
            run_id=rubric.run_id,
            n=mean.n,
            mean=mean.mean if mean.n else None,
            unparsable=scores.unparsable,
            failed=scores.failed,
            **_ends(mean.interval),
        )


class QualityItemView(BaseModel):
    """The quality of the answers of a group. Only the members that the report is grouped by are there."""

    day: date | None = Field(None, exclude_if=lambda value: value is None)
    project: str | None = Field(None, exclude_if=lambda value: value is None)
    model: str | None = Field(None, description="Null: feedback about conversations, which have no single model.")
    route: str | None = Field(None, description="The model or route that requests named; null as for `model`.")
    up: RateView = Field(description="Thumbs up, of all ratings.")
    other_feedback: int = Field(description="Values of other metrics than `rating`.")
    refusals: RefusalsView
    errors: RateView = Field(description="Requests that failed or expired, of all but cancelled ones.")
    scores: list[ScoresView] = Field(description="By rubric: what judges say of sampled answers.")


class ClassifierView(BaseModel):
    """How well the classifier finds refusals, on answers that it was not trained with."""

    precision: RateView = Field(description="Of the answers that it takes for refusals, those that are.")
    recall: RateView = Field(description="Of the refusals, those that it finds.")


_RATE: dict[str, Any] = {"count": 18, "n": 20, "rate": 0.9, "low": 0.6990, "high": 0.9721}
_REFUSALS: dict[str, Any] = {
    "count": 3, "n": 412, "rate": 0.0073, "low": 0.0025, "high": 0.0212, "by_provider": 1, "by_classifier": 2,
}  # fmt: skip


class QualityReport(BaseModel):
    """The quality of answers in a time, by groups."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "quality",
                    "start": "2026-11-24",
                    "end": "2026-12-01",
                    "time_zone": "UTC",
                    "group_by": ["model"],
                    "data": [
                        {
                            "model": "smollm2",
                            "up": _RATE,
                            "other_feedback": 4,
                            "refusals": _REFUSALS,
                            "errors": {"count": 2, "n": 414, "rate": 0.0048, "low": 0.0013, "high": 0.0174},
                            "scores": [
                                {"rubric": "helpful", "prompt_version": "1", "judge": "large", "scale": "1-5",
                                 "run_id": "evalrun_live_0193c2d2b7a57c1c8f9e2a4b", "n": 41, "mean": 3.9, "low": 3.6,
                                 "high": 4.2, "unparsable": 1, "failed": 0}
                            ],
                        }
                    ],
                    "refusal_classifier": {
                        "precision": {"count": 61, "n": 64, "rate": 0.9531, "low": 0.8714, "high": 0.9839},
                        "recall": {"count": 61, "n": 71, "rate": 0.8592, "low": 0.7602, "high": 0.9217},
                    },
                    "has_more": False,
                    "next_page": None,
                }
            ]
        }
    )  # fmt: skip

    object: Literal["quality"] = "quality"
    start: date = Field(description="The first day.")
    end: date = Field(description="The day after the last.")
    time_zone: str
    group_by: list[str]
    data: list[QualityItemView] = Field(description="In the order of the groups. Groups without anything are left out.")
    refusal_classifier: ClassifierView
    has_more: bool
    next_page: str | None = Field(description="`page` of the request for the following items.")


def item_members(item: QualityItem, group_by: list[str]) -> dict[str, Any]:
    """The members of a `QualityItemView`: of the groups, only those that the report is grouped by."""
    values = iter(item.values)
    groups = {name: item.day if name == "day" else next(values) for name in group_by}
    requests = item.requests
    return {
        **groups,
        "up": RateView.of(item.up).model_dump(),
        "other_feedback": item.feedback.others,
        "refusals": RefusalsView.of(
            item.refusals, by_provider=requests.refused_by_provider, by_classifier=requests.refused_by_classifier
        ).model_dump(),
        "errors": RateView.of(item.errors).model_dump(),
        "scores": [ScoresView.of(scores).model_dump() for scores in item.scores],
    }


def classifier_view() -> dict[str, Mapping[str, Any]]:
    """The members of a `ClassifierView`."""
    measured = classifier().measured
    return {name: measured[name] for name in ("precision", "recall")}


def _ends(interval: Interval | None) -> dict[str, float | None]:
    return {"low": None, "high": None} if interval is None else {"low": interval.low, "high": interval.high}
