"""What the pages of quality show. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

from api.console.filters import number
from api.console.overview.view import Badge
from api.context.transcript import entries
from api.evals.reports import ModelReport, RubricReport
from api.evals.rubrics import Rubric
from api.evals.service import Comparison, RubricState, ToLabel
from api.evals.statistics import Agreement, Conclusion, Difference
from api.quality.intervals import Interval, Rate
from api.quality.service import QualityItem, Scores

# Characters of a text that a person labels; longer ones are cut, which the page says.
MAX_TEXT = 20_000
# By Landis and Koch, as a help for readers who do not know kappa.
_WORDS = ((0.8, "almost perfect"), (0.6, "substantial"), (0.4, "moderate"), (0.2, "fair"), (0.0, "slight"))


class Range(NamedTuple):
    """An interval and a mean as places from 0 to 100 in a picture; `zero` is where no difference would be."""

    low: float
    mean: float
    high: float
    zero: float | None = None


@dataclass(frozen=True, slots=True)
class ModelLine:
    """A row of the table of models."""

    model: str
    n: str
    mean: str
    interval: str
    range: Range | None
    unparsable: int
    failed: int
    pending: int


@dataclass(frozen=True, slots=True)
class AgreementLine:
    """How far two raters agree, in words."""

    who: str
    kappa: str
    words: str
    n: int


@dataclass(frozen=True, slots=True)
class ReportView:
    """The scores by a rubric."""

    question: str
    scale: str
    judge: str
    version: str
    models: Sequence[ModelLine]
    agreement: Sequence[AgreementLine]
    cost: Decimal | None
    rate: str
    paused: str | None
    paused_until: datetime | None


@dataclass(frozen=True, slots=True)
class ComparisonView:
    """Whether one model is worse than another."""

    verdict: str
    badge: Badge
    a: str
    b: str
    facts: Sequence[tuple[str, str]]
    range: Range | None
    shares: Sequence[tuple[str, int, float]]


class TextView(NamedTuple):
    """A message, as text."""

    label: str
    text: str
    is_cut: bool


@dataclass(frozen=True, slots=True)
class ScoreButton:
    """A button for a score, and the key that presses it."""

    value: str
    text: str
    key: str


@dataclass(frozen=True, slots=True)
class ToLabelView:
    """An answer to label."""

    item: str
    question: str
    scale: str
    conversation: Sequence[TextView]
    answer: TextView
    buttons: Sequence[ScoreButton]

    @classmethod
    def of(cls, found: ToLabel) -> ToLabelView:
        """The view of an answer."""
        conversation = [entry for message in found.conversation for entry in entries(message)]
        return cls(
            found.item,
            found.rubric.question,
            str(found.rubric.scale),
            [_text(entry.label, entry.text) for entry in conversation],
            _text("answer", found.answer),
            score_buttons(found.rubric),
        )


def score_buttons(rubric: Rubric) -> list[ScoreButton]:
    """The buttons of a scale, from worst to best. A score above 9 has no key of its own."""
    scale = rubric.scale
    if scale.yes_no:
        return [ScoreButton("no", "No", "n"), ScoreButton("yes", "Yes", "y")]
    return [ScoreButton(str(score), str(score), str(score) if score < 10 else "") for score in scale.scores]


def _text(label: str, text: str) -> TextView:
    return TextView(label, text[:MAX_TEXT], len(text) > MAX_TEXT)


@dataclass(frozen=True, slots=True)
class RateCell:
    """A rate with its interval, as text and as places in a picture."""

    text: str
    interval: str
    n: int
    range: Range | None


@dataclass(frozen=True, slots=True)
class GroupLine:
    """A row of the table of rates."""

    name: str
    up: RateCell
    refusals: RateCell
    by_classifier: int
    errors: RateCell
    scores: Sequence[str]


def group_line(item: QualityItem) -> GroupLine:
    """The rates and scores of a group."""
    name = item.day if item.day is not None else next(iter(item.values), None)
    return GroupLine(
        name=str(name) if name else "conversations",
        up=_rate_cell(item.up),
        refusals=_rate_cell(item.refusals),
        by_classifier=item.requests.refused_by_classifier,
        errors=_rate_cell(item.errors),
        scores=[_score_text(one) for one in item.scores],
    )


def _rate_cell(rate: Rate) -> RateCell:
    share, interval = rate.rate, rate.interval
    if share is None or interval is None:
        return RateCell("–", "", 0, None)
    places = Range(round(interval.low * 100, 2), round(share * 100, 2), round(interval.high * 100, 2))
    return RateCell(f"{share:.1%}", f"{interval.low:.1%} to {interval.high:.1%}", rate.n, places)


def _score_text(one: Scores) -> str:
    rubric = one.rubric
    name = f"{rubric.name} (version {rubric.prompt_version}, judge {rubric.judge})"
    if one.mean is None:
        return f"{name}: no scores, {number(one.unparsable)} unparsable, {number(one.failed)} failed"
    interval = one.mean.interval
    between = "" if interval is None else f" ({_between(interval, '.2f')})"
    return f"{name}: {one.mean.mean:.2f}{between}, n = {number(one.mean.n)}"


def report_view(
    report: RubricReport, state: RubricState, *, is_operator: bool, now: datetime | None = None
) -> ReportView:
    """The scores of a report. What judges cost is for operators."""
    rubric = report.rubric
    paused = state.run.options.get("paused") if state.run is not None else None
    until = datetime.fromisoformat(paused["until"]) if paused else None
    is_paused = until is not None and until > (now or datetime.now(UTC))
    lines = [_agreement_line("judge and people", report.with_people)]
    lines += [
        _agreement_line(f"judge and {_labeller(labeller, report.names)}", one)
        for labeller, one in report.by_labeller.items()
    ]
    lines.append(_agreement_line("two people", report.people))
    return ReportView(
        question=rubric.question,
        scale=str(rubric.scale),
        judge=rubric.judge,
        version=rubric.prompt_version,
        models=[_model_line(rubric, one) for one in report.models],
        agreement=[line for line in lines if line.n],
        cost=report.cost if is_operator else None,
        rate=f"{rubric.sampling.rate * 100:g} %",
        paused=paused["reason"] if paused and is_paused else None,
        paused_until=until if is_paused else None,
    )


def _model_line(rubric: Rubric, one: ModelReport) -> ModelLine:
    mean, scale = one.mean, rubric.scale
    if mean is None:
        return ModelLine(one.model, "0", "–", "–", None, one.unparsable, one.failed, one.pending)

    def at(value: float) -> float:
        return round(100 * (value - scale.low) / (scale.high - scale.low), 2)

    interval = mean.interval
    return ModelLine(
        one.model,
        number(mean.n),
        _score(mean.mean, rubric),
        "–" if interval is None else f"{_score(interval.low, rubric)} to {_score(interval.high, rubric)}",
        Range(at(interval.low if interval else mean.mean), at(mean.mean), at(interval.high if interval else mean.mean)),
        one.unparsable,
        one.failed,
        one.pending,
    )


def _score(value: float, rubric: Rubric) -> str:
    return f"{value * 100:.1f} %" if rubric.scale.yes_no else f"{value:.2f}"


def _agreement_line(who: str, one: Agreement) -> AgreementLine:
    if one.kappa is None:
        return AgreementLine(who, "not defined", "all scores are the same" if one.n else "", one.n)
    interval = "" if one.interval is None else f" ({_between(one.interval, '.2f')})"
    kappa = one.kappa
    words = next((text for least, text in _WORDS if kappa >= least), "less than by chance")
    return AgreementLine(who, f"{kappa:.2f}{interval}", words, one.n)


def _labeller(labeller: str, names: Mapping[str, str]) -> str:
    """A person, by the name of their key, and by its id too if another key has the same name."""
    name = names.get(labeller)
    if name is None:
        return labeller
    return name if list(names.values()).count(name) == 1 else f"{name} ({labeller})"


def _between(interval: Interval, form: str) -> str:
    return f"{interval.low:{form}} to {interval.high:{form}}"


def comparison_view(one: Comparison) -> ComparisonView:
    """A comparison in words, and as places in a picture: with the items that a model has not answered as its worst."""
    found, difference, pairs = one.found, one.found.difference, one.found.pairwise
    verdict, badge = {
        Conclusion.WORSE: (f"{one.b} is worse than {one.a}.", Badge("worse", "bad")),
        Conclusion.BETTER: (f"{one.b} is better than {one.a}.", Badge("better", "good")),
        Conclusion.NO_DIFFERENCE: (
            f"No difference is shown: {one.b} may be a little worse or a little better than {one.a}.",
            Badge("no difference shown", "plain"),
        ),
        Conclusion.TOO_FEW: ("There are too few answers to tell.", Badge("too few", "near")),
    }[found.shown.conclusion]
    facts = [("n", number(difference.n))]
    if difference.mean is not None:
        facts.insert(0, ("Difference", f"{difference.mean:+.3f}"))
    if difference.interval is not None:
        facts.append(("95 % interval", _between(difference.interval, "+.3f")))
    if difference.p is not None:
        facts.append(("p of no difference", f"{difference.p:.4f}"))
    facts += _without_scores(one)
    shares: list[tuple[str, int, float]] = []
    if pairs is not None:
        facts.append(("The orders disagree on", f"{number(pairs.swapped)} of {number(difference.n)} items"))
        counts = ((one.a, pairs.wins[0]), ("neither", pairs.ties), (one.b, pairs.wins[1]))
        shares = [(name, count, count / max(1, difference.n)) for name, count in counts]
    unscored = f"{number(one.unparsable)} unparsable, {number(one.failed)} failed, {number(one.pending)} pending"
    facts.append(("Not scored", unscored))
    if found.erased:
        facts.append(("Erased", f"{number(found.erased)} items, which count for nothing"))
    facts.append(("Judged by", f"{one.judge_model}, by the rubric {one.rubric}"))
    facts.append(("From", one.run_id or "scores of sampled answers, of different requests"))
    return ComparisonView(verdict, badge, one.a, one.b, facts, _difference_range(found.shown), shares)


def _without_scores(one: Comparison) -> list[tuple[str, str]]:
    """What the items that have no score can change."""
    found, sensitivity = one.found, one.found.sensitivity
    if sensitivity is None:
        return []
    facts = [
        (f"{model} has not answered", f"{number(count)} items")
        for model, count in zip((one.a, one.b), found.unanswered, strict=True)
        if count
    ]
    if facts:
        facts.append(("With failed answers as the worst", _difference_text(sensitivity.counted)))
    for model, bound in ((one.b, sensitivity.against_b), (one.a, sensitivity.against_a)):
        if bound is not None:
            name = f"If the {number(found.unscored)} without a score spoke against {model}"
            facts.append((name, _difference_text(bound)))
    return facts


def _difference_text(difference: Difference) -> str:
    if difference.mean is None:
        return "–"
    interval = "" if difference.interval is None else f" ({_between(difference.interval, '+.3f')})"
    return f"{difference.mean:+.3f}{interval}, n = {number(difference.n)}"


def _difference_range(difference: Difference) -> Range | None:
    mean, interval = difference.mean, difference.interval
    if mean is None:
        return None
    low, high = (interval.low, interval.high) if interval is not None else (mean, mean)
    most = max(abs(low), abs(high)) * 1.15 or 1.0

    def at(value: float) -> float:
        return round(50 + 50 * value / most, 2)

    return Range(at(low), at(mean), at(high), 50.0)
