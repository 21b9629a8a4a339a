"""`headrace evals`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.client import path
from cli.groups import ListGroup
from cli.options import After, All, Json, Limit, connect, show_list
from cli.output import Column, print_fields, print_json, print_table, say
from cli.text import local_time


class _EvalsGroup(ListGroup):
    """`headrace evals` alone lists the rubrics."""

    default = "rubrics"


evals = typer.Typer(
    cls=_EvalsGroup, help="Show what judges say of answers, and compare two models.", rich_markup_mode=None
)

RUBRICS = (
    Column("RUBRIC"),
    Column("SCALE"),
    Column("JUDGE"),
    Column("RATE", right=True),
    Column("SCORED", right=True),
    Column("UNPARSABLE", right=True, drop=1),
    Column("FAILED", right=True, drop=1),
    Column("PAUSED UNTIL", drop=2),
)
RUNS = (
    Column("RUN"),
    Column("KIND", drop=2),
    Column("RUBRIC"),
    Column("JUDGE", drop=3),
    Column("MODELS", drop=1),
    Column("SCORED", right=True),
    Column("PENDING", right=True),
    Column("STARTED", drop=4),
)
MODELS = (
    Column("MODEL"),
    Column("N", right=True),
    Column("MEAN", right=True),
    Column("95 % INTERVAL"),
    Column("UNPARSABLE", right=True, drop=1),
    Column("FAILED", right=True, drop=1),
)
JUDGEMENTS = (
    Column("ITEM"),
    Column("MODEL", drop=1),
    Column("ORDER", right=True, drop=2),
    Column("STATE"),
    Column("SCORE", right=True),
    Column("REASON", drop=3),
)
CONCLUSIONS = {
    "worse": "{b} is worse than {a}.",
    "better": "{b} is better than {a}, not worse.",
    "no_difference_shown": "No difference is shown: {b} may be a little worse or a little better than {a}.",
    "too_few": "There are too few answers to tell.",
}

RubricName = Annotated[str | None, typer.Option("--rubric", metavar="NAME", help="By this rubric.")]
Days = Annotated[int, typer.Option("--days", min=1, max=365, metavar="N", help="Answers of the last days.")]


@evals.command()
def rubrics(context: typer.Context, as_json: Json = False) -> None:
    """List the rubrics, with how far their sampling is."""
    with connect(context) as client:
        found = client.get("/v1/evals/rubrics")["data"]
    if as_json:
        for rubric in found:
            print_json(rubric)
        return
    print_table(RUBRICS, [_rubric_row(rubric) for rubric in found], empty="No rubrics: HEADRACE_RUBRICS is not set.")


@evals.command()
def runs(
    context: typer.Context,
    rubric: RubricName = None,
    limit: Limit = 20,
    after: After = None,
    everything: All = False,
    as_json: Json = False,
) -> None:
    """List the runs of judges, newest first."""
    params = {name: value for name, value in (("rubric", rubric), ("after", after)) if value is not None}
    with connect(context) as client:
        shown = None if everything else limit
        show_list(client, "/v1/evals/runs", params, shown, RUNS, _run_row, as_json=as_json, empty="No runs.")


@evals.command()
def judgements(
    context: typer.Context,
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="The run's id, such as evalrun_….")],
    limit: Limit = 20,
    after: After = None,
    everything: All = False,
    as_json: Json = False,
) -> None:
    """List the judgements of a run, oldest first."""
    params = {} if after is None else {"after": after}
    with connect(context) as client:
        shown, where = None if everything else limit, path("evals", "runs", run_id, "judgements")
        show_list(client, where, params, shown, JUDGEMENTS, _judgement_row, as_json=as_json, empty="No judgements.")


@evals.command()
def report(
    context: typer.Context,
    rubric: Annotated[str, typer.Argument(metavar="RUBRIC")],
    days: Days = 30,
    as_json: Json = False,
) -> None:
    """Show the scores of sampled answers by a rubric, and how far people agree with the judge."""
    with connect(context) as client:
        found = client.get("/v1/evals/report", params={"rubric": rubric, "days": days})
    if as_json:
        print_json(found)
        return
    cost = found["judge_cost_usd"]
    print_fields(
        [
            ("rubric", f"{found['rubric']}, version {found['prompt_version']}, scale {found['scale']}"),
            ("judge", found["judge"]),
            ("with people", _agreement(found["agreement"])),
            *(
                (f"with {one.get('name') or labeller} ({labeller})", _agreement(one))
                for labeller, one in found["by_labeller"].items()
            ),
            ("between people", _agreement(found["between_people"])),
            ("cost of the judge", None if cost is None else f"${cost:.4f}"),
        ]
    )
    say("")
    print_table(MODELS, [_model_row(model) for model in found["models"]], empty="No answers were judged.")


@evals.command()
def compare(
    context: typer.Context,
    a: Annotated[str, typer.Argument(metavar="A")],
    b: Annotated[str, typer.Argument(metavar="B")],
    rubric: RubricName = None,
    run: Annotated[str | None, typer.Option("--run", metavar="ID", help="By this run.")] = None,
    days: Days = 30,
    as_json: Json = False,
) -> None:
    """Is model B worse than model A? By the newest run that has compared them, or by scores of sampled answers.

    `python -m api.evals compare` starts a new run over a set.
    """
    params = {"a": a, "b": b, "days": days, "rubric": rubric, "run_id": run}
    with connect(context) as client:
        found = client.get(
            "/v1/evals/comparison", params={name: value for name, value in params.items() if value is not None}
        )
    if as_json:
        print_json(found)
        return
    say(CONCLUSIONS[found["conclusion"]].format(a=a, b=b))
    pairs, p = found["pairwise"], found["p"]
    preferred = swapped = None
    if pairs is not None:
        preferred = f"{a} {pairs['a_wins']}, neither {pairs['ties']}, {b} {pairs['b_wins']}"
        swapped = f"{pairs['order_disagreement']} of {found['n']} items"
    print_fields(
        [
            ("difference", _number(found["difference"])),
            ("95 % interval", _interval(found["interval"])),
            ("p of no difference", None if p is None else f"{p:.4f}"),
            ("n", found["n"]),
            ("preferred", preferred),
            ("the orders disagree on", swapped),
            *_without_scores(found, a, b),
            ("not scored", f"{found['unparsable']} unparsable, {found['failed']} failed, {found['pending']} pending"),
            ("erased", f"{found['erased']} items" if found.get("erased") else None),
            ("rubric", f"{found['rubric']}, judged by {found['judge']}"),
            ("run", found["run_id"] or "scores of sampled answers, of different requests"),
        ]
    )


def _without_scores(found: dict[str, Any], a: str, b: str) -> list[tuple[str, str]]:
    """What the items that have no score can change."""
    sensitivity = found.get("sensitivity")
    if sensitivity is None:
        return []
    unanswered = found["unanswered"]
    lines = [
        (f"{model} has not answered", f"{count} items")
        for model, count in ((a, unanswered["a"]), (b, unanswered["b"]))
        if count
    ]
    if lines:
        lines.append(("failed answers as the worst", _difference(sensitivity["failures_as_worst"])))
    for model, name in ((b, "unscored_against_b"), (a, "unscored_against_a")):
        if (bound := sensitivity[name]) is not None:
            lines.append((f"the {found['unscored']} without a score against {model}", _difference(bound)))
    return lines


def _difference(found: dict[str, Any]) -> str:
    return f"{_number(found['difference'])} ({_interval(found['interval'])}), n = {found['n']}"


def _rubric_row(rubric: dict[str, Any]) -> list[object]:
    live = rubric["live"] or {"judgements": {}, "paused_until": None}
    counts = live["judgements"]
    return [
        rubric["name"],
        rubric["scale"],
        rubric["judge"],
        f"{rubric['sampling']['rate']:g}",
        counts.get("scored", 0),
        counts.get("unparsable", 0),
        counts.get("failed", 0),
        local_time(live["paused_until"]),
    ]


def _run_row(run: dict[str, Any]) -> list[object]:
    counts = run["judgements"]
    return [
        run["id"],
        run["kind"],
        run["rubric"],
        run["judge"],
        ", ".join(run["models"]) or "-",
        counts.get("scored", 0),
        counts.get("pending", 0),
        local_time(run["created_at"]),
    ]


def _judgement_row(one: dict[str, Any]) -> list[object]:
    return [
        one["item"],
        one["model"],
        one["position"] or "-",
        one["state"],
        "-" if one["score"] is None else f"{one['score']:g}",
        one["reason"] or "-",
    ]


def _model_row(model: dict[str, Any]) -> list[object]:
    return [
        model["model"],
        model["n"],
        "-" if model["mean"] is None else f"{model['mean']:.3f}",
        _interval(model["interval"], sign="") or "-",
        model["unparsable"],
        model["failed"],
    ]


def _agreement(one: dict[str, Any]) -> str:
    if one["kappa"] is None:
        return f"not known, n = {one['n']}"
    interval = _interval(one["interval"], sign="")
    return f"kappa {one['kappa']:.2f}{f' ({interval})' if interval else ''}, n = {one['n']}"


def _interval(interval: dict[str, float] | None, sign: str = "+") -> str | None:
    return None if interval is None else f"{interval['low']:{sign}.3f} to {interval['high']:{sign}.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"
