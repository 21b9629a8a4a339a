"""`python -m api.evals run|compare`: judge the answers of a set, and compare two models over it.

It talks to the API at HEADRACE_URL with the key in HEADRACE_API_KEY, which needs the scopes `inference` and `admin`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from api.evals.chart import svg
from api.evals.driver import Answers, Driver, DriverError
from api.evals.outcomes import Compared, Sensitivity, compare_references
from api.evals.reference import METRICS
from api.evals.rubrics import Scale
from api.evals.sets import EvalSet, SetError, read_set
from api.evals.statistics import Conclusion, Difference
from api.quality.intervals import YES_NO, Interval, Mean, mean_of_scores, wilson

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_MAX_TOKENS = 512
_CONCLUSIONS = {
    Conclusion.WORSE: "{b} is worse than {a}.",
    Conclusion.BETTER: "{b} is better than {a}, not worse.",
    Conclusion.NO_DIFFERENCE: "No difference is shown: {b} may be a little worse or a little better than {a}.",
    Conclusion.TOO_FEW: "There are too few items to tell.",
}


def show_progress(what: str, done: int, total: int) -> None:
    """Show on a terminal how far a step is."""
    if sys.stderr.isatty():
        print(f"\r{what}: {done}/{total}", end="\n" if done >= total else "", file=sys.stderr, flush=True)


async def compare(arguments: argparse.Namespace, driver: Driver) -> int:
    """Compare two models over a set; returns the exit status: 3 if the second is worse, 1 if nothing was compared."""
    items, a, b = read_set(arguments.set, arguments.limit), arguments.a, arguments.b
    if a == b:
        raise SetError(f"name two different models: both are {a}")
    uses_judge = arguments.rubric is not None or arguments.judge is not None
    if not uses_judge and not items.has_expected:
        raise SetError("name a --rubric or a --judge: not all items of the set have an `expected` answer")
    _warn_of_repeated(items)
    answers = await _answers((a, b), arguments, driver, items)
    shares: tuple[int, int, int] | None = None
    if uses_judge:
        found, lines, shares = await _judged(arguments, driver, items, answers)
        what = f"preference for {b}, from -1 to 1"
    else:
        found, lines = _referenced(arguments.metric, items, answers)
        what = f"{arguments.metric} against the expected answers"
    print("\n".join([*lines, *conclusion(found, a, b, what, len(items.items))]))
    if arguments.chart is not None:
        title = f"Is {b} worse than {a}? ({items.name})"
        arguments.chart.write_text(svg(title, found.shown, a=a, b=b, what=what, shares=shares))
        print(f"picture: {arguments.chart}")
    if found.shown.mean is None:
        return 1  # a deployment that is to stop if the second model is worse must not take this for "it is not"
    return 3 if found.shown.conclusion is Conclusion.WORSE else 0


async def _judged(
    arguments: argparse.Namespace, driver: Driver, items: EvalSet, answers: Sequence[Answers]
) -> tuple[Compared, list[str], tuple[int, int, int]]:
    run = await driver.judge("pairwise", items, answers, rubric=arguments.rubric, judge=arguments.judge)
    found = await driver.comparison(arguments.a, arguments.b, run["id"])
    pairs, sensitivity = found["pairwise"], found["sensitivity"]
    lines = [
        f"judge: {found['judge']}, rubric {found['rubric']}, run {run['id']}",
        f"preferred: {arguments.a} {pairs['a_wins']}, neither {pairs['ties']}, {arguments.b} {pairs['b_wins']}",
        f"disagreement of the two orders: {_share(pairs['order_disagreement'], found['n'])}",
        f"not scored: {found['unparsable']} unparsable, {found['failed']} failed",
    ]
    if found.get("erased"):
        lines.append(f"erased before they were judged: {found['erased']} items, which count for nothing")
    compared = Compared(
        _difference(found),
        None,
        None
        if sensitivity is None
        else Sensitivity(
            _difference(sensitivity["failures_as_worst"]),
            _difference_if_any(sensitivity["unscored_against_b"]),
            _difference_if_any(sensitivity["unscored_against_a"]),
        ),
        (found["unanswered"]["a"], found["unanswered"]["b"]),
        found["unscored"],
        found.get("erased", 0),  # servers of the previous version have no such member
    )
    return compared, lines, (pairs["a_wins"], pairs["ties"], pairs["b_wins"])


def _difference(found: dict[str, Any]) -> Difference:
    interval = found["interval"]
    return Difference(found["n"], found["difference"], None if interval is None else Interval(**interval), found["p"])


def _difference_if_any(found: dict[str, Any] | None) -> Difference | None:
    return None if found is None else _difference(found)


def _referenced(metric: str, items: EvalSet, answers: Sequence[Answers]) -> tuple[Compared, list[str]]:
    score = METRICS[metric]
    expected = {item.id: item.expected or "" for item in items.items}
    first, second = (
        {item: score(text, expected[item]) for item, text in one.texts.items() if item in expected} for one in answers
    )
    lines = [
        f"{one.model}: {metric} {sum(scores.values()) / (len(scores) or 1):.3f} of {len(scores)} answers"
        for one, scores in zip(answers, (first, second), strict=True)
    ]
    return compare_references(first, second, list(expected)), lines


def conclusion(found: Compared, a: str, b: str, what: str, items: int) -> list[str]:
    """The lines that say whether `b` is worse. `items`: those of the set."""
    sensitivity = found.sensitivity
    if sensitivity is None:
        return [_line(what, found.difference), _verdict(found.difference, a, b)]
    lines = [
        f"not answered: {model} {_rate(count, items)}"
        for model, count in zip((a, b), found.unanswered, strict=True)
        if count
    ]
    lines.append(_line(f"{what}, where both have answered and there is a score", found.difference))
    if any(found.unanswered):
        lines.append(_line("with failed answers as the worst", sensitivity.counted))
    for model, bound in ((b, sensitivity.against_b), (a, sensitivity.against_a)):
        if bound is not None:
            lines.append(_line(f"and if all {found.unscored} items without a score spoke against {model}", bound))
    if sensitivity.counted.conclusion is not found.difference.conclusion:
        lines.append(f"Without the items that were not answered: {_verdict(found.difference, a, b)}")
    return [*lines, _verdict(sensitivity.counted, a, b)]


def _line(what: str, difference: Difference) -> str:
    if difference.mean is None:
        return f"{what}: no item was compared"
    interval = difference.interval
    between = "" if interval is None else f", 95 % interval {interval.low:+.3f} to {interval.high:+.3f}"
    if interval is not None and interval.low == interval.high:
        between += " (all differences are equal: chance is not seen)"
    p = "" if difference.p is None else f", p of no difference {difference.p:.4f}"
    return f"{what}: {difference.mean:+.3f}{between}{p}, n = {difference.n}"


def _verdict(difference: Difference, a: str, b: str) -> str:
    return _CONCLUSIONS[difference.conclusion].format(a=a, b=b)


def _rate(count: int, n: int) -> str:
    interval = wilson(count, n)
    return f"{count} of {n} ({count / n:.1%}, 95 % interval {interval.low:.1%} to {interval.high:.1%})"


async def run(arguments: argparse.Namespace, driver: Driver) -> int:
    """Judge the answers of a set: those of models, or the recorded ones; returns the exit status: 1 without a score."""
    items = read_set(arguments.set, arguments.limit)
    _warn_of_repeated(items)
    if arguments.model:
        series = [await _answers(dict.fromkeys(arguments.model), arguments, driver, items)]
    else:
        # One run for each model: not all of them have answered all items.
        series = [[one] for one in _recorded(items)]
    is_scored = False
    for answers in series:
        found = await driver.judge("set", items, answers, rubric=arguments.rubric, judge=arguments.judge)
        judgements = await driver.judgements(found["id"])
        print(f"judge: {found['judge']}, rubric {found['rubric']}, run {found['id']}")
        for one in answers:
            own = [other for other in judgements if other["model"] == one.model]
            print(_scores(one.model, own, found["scale"]))
        is_scored |= any(one["state"] == "scored" for one in judgements)
    return 0 if is_scored else 1


def _recorded(items: EvalSet) -> list[Answers]:
    """The recorded answers of a set by the model that gave them; those of unknown models have the name of the set."""
    texts: dict[str, dict[str, str]] = {}
    for item in items.items:
        if item.answer is not None:
            texts.setdefault(item.model or items.name, {})[item.id] = item.answer
    if not texts:
        raise SetError("the set has no recorded answers: name the --model that answers")
    return [Answers(model, found) for model, found in texts.items()]


def _scores(model: str, judgements: Sequence[dict[str, Any]], scale: str) -> str:
    scores = Counter(float(one["score"]) for one in judgements if one["state"] == "scored")
    states = Counter(one["state"] for one in judgements)
    without = f"{states['unparsable']} unparsable, {states['failed']} failed"
    if states["erased"]:
        without += f", {states['erased']} erased"
    unanswered = states["unanswered"]
    if unanswered:
        without += f", {unanswered} not answered"
    mean = mean_of_scores(scores, yes_no=scale == YES_NO)
    if mean is None:
        return f"{model}: no scores; {without}"
    line = f"{model}: {_mean(mean)}; {without}"
    worst = Counter({float(Scale.parse(scale).low): unanswered})
    counted = mean_of_scores(scores + worst, yes_no=scale == YES_NO)
    return line if not unanswered or counted is None else f"{line}; with these as the worst: {_mean(counted)}"


def _mean(mean: Mean) -> str:
    interval = "" if mean.interval is None else f", 95 % interval {mean.interval.low:.3f} to {mean.interval.high:.3f}"
    return f"mean {mean.mean:.3f}{interval}, n = {mean.n}"


async def _answers(
    models: Iterable[str], arguments: argparse.Namespace, driver: Driver, items: EvalSet
) -> list[Answers]:
    """Let models answer the items, and report what is missing, what is not new, and what others have answered."""
    found = []
    for model in models:
        found.append(await driver.answers(model, items, max_tokens=arguments.max_tokens, fresh=arguments.fresh))
        _report(found[-1])
    return found


def _report(answers: Answers) -> None:
    if answers.by:
        others = ", ".join(f"{model} {count}" for model, count in sorted(answers.by.items()))
        print(f"{answers.model} is a route; its answers are those of {others}", file=sys.stderr)
    if answers.cut:
        print(f"{answers.model}: {answers.cut} answers were cut at the limit of their tokens", file=sys.stderr)
    if answers.reused:
        print(
            f"{answers.model}: {answers.reused} answers are those of an earlier command, or of the response cache;"
            " --fresh lets it answer again",
            file=sys.stderr,
        )
    if answers.failed:
        item, problem = next(iter(answers.failed.items()))
        print(
            f"{answers.model} has not answered {len(answers.failed)} items, such as {item}: {problem}", file=sys.stderr
        )


def _warn_of_repeated(items: EvalSet) -> None:
    if items.repeated:
        print(
            f"{items.repeated} items of the set have the same messages as others: they say nothing new, and the"
            " intervals are too narrow",
            file=sys.stderr,
        )


def _share(count: int, of: int) -> str:
    return f"{count} of {of} items" + (f" ({count / of:.0%})" if of else "")


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m api.evals", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    one = actions.add_parser("run", help="score the answers of a set by a rubric")
    one.add_argument("rubric", metavar="RUBRIC")
    one.add_argument(
        "--model", action="append", default=[], metavar="NAME", help="let this model answer; default: recorded answers"
    )
    two = actions.add_parser("compare", help="is model B worse than model A?")
    two.add_argument("a", metavar="A")
    two.add_argument("b", metavar="B")
    two.add_argument("--rubric", metavar="NAME", help="compare by its question; default: which answer is better")
    two.add_argument("--metric", choices=list(METRICS), default="f1", help="without a judge: how answers are scored")
    two.add_argument("--chart", type=Path, metavar="FILE.svg", help="draw the result")
    for action in (one, two):
        action.add_argument("--set", type=Path, required=True, metavar="FILE.jsonl")
        action.add_argument("--judge", metavar="MODEL", help="the model that judges; default: that of the rubric")
        action.add_argument("--fresh", action="store_true", help="let models answer again what they have answered")
        action.add_argument("--limit", type=_count, metavar="N", help="only the first items of the set")
        action.add_argument(
            "--max-tokens", type=_count, default=DEFAULT_MAX_TOKENS, metavar="N", help="of each answer, at most"
        )
    parsed = parser.parse_args(arguments)
    key = os.environ.get("HEADRACE_API_KEY")
    if not key:
        print("HEADRACE_API_KEY: set it to a key with the scopes inference and admin", file=sys.stderr)
        return 2
    url = os.environ.get("HEADRACE_URL") or DEFAULT_URL

    async def call() -> int:
        async with Driver(url, key, show_progress) as driver:
            return await (compare if parsed.action == "compare" else run)(parsed, driver)

    try:
        return asyncio.run(call())
    except (DriverError, SetError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
