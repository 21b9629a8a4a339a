"""`headrace budgets`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from cli.client import path
from cli.commands.jobs import of_each
from cli.errors import UsageError
from cli.groups import ListGroup
from cli.options import After, All, Json, Limit, Yes, ask, connect, show_list
from cli.output import Column, print_fields, print_json, say
from cli.text import local_time

budgets = typer.Typer(cls=ListGroup, help="List, create, change and delete budgets.", rich_markup_mode=None)

COLUMNS = (
    Column("BUDGET"),
    Column("PROJECT"),
    Column("OF", drop=2),
    Column("LIMIT", right=True),
    Column("SPENT", right=True),
    Column("RESERVED", right=True, drop=1),
    Column("LEFT", right=True),
    Column("RESETS", drop=3),
)


class Period(StrEnum):
    """How long the windows of a budget are."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    TOTAL = "total"


class Exceeding(StrEnum):
    """What happens to jobs that a hard budget has no room for."""

    REJECT = "reject"
    HOLD = "hold"
    DOWNGRADE = "downgrade"


BudgetId = Annotated[str, typer.Argument(metavar="ID", help="The budget's id, such as budget_3.")]
LimitUsd = Annotated[float | None, typer.Option("--limit-usd", metavar="DOLLARS", help="Dollars in each window.")]
Hard = Annotated[
    bool | None, typer.Option("--hard/--soft", help="Whether jobs without room are refused, or it only warns.")
]
OnExceed = Annotated[
    Exceeding | None,
    typer.Option(
        metavar="ACTION",
        help="For jobs without room: reject; hold: background jobs wait; downgrade: routes choose a cheaper model.",
    ),
]
AlertAt = Annotated[
    list[float] | None,
    typer.Option(metavar="SHARE", help="Report when this share of it is spent: 0.8. Repeatable."),
]


@budgets.command("list")
def list_budgets(
    context: typer.Context,
    project: Annotated[str | None, typer.Option(metavar="NAME", help="Only budgets of this project.")] = None,
    limit: Limit = 20,
    after: After = None,
    everything: All = False,
    as_json: Json = False,
) -> None:
    """List budgets, newest first, with what is left of them."""
    params = {name: value for name, value in (("project", project), ("after", after)) if value is not None}
    with connect(context) as client:
        shown = None if everything else limit
        show_list(client, "/v1/admin/budgets", params, shown, COLUMNS, _row, as_json=as_json, empty="No budgets.")


@budgets.command()
def show(
    context: typer.Context,
    budget_id: BudgetId,
    end_user: Annotated[
        str | None, typer.Option(metavar="NAME", help="What this end user has spent of a budget that each has.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a budget."""
    with connect(context) as client:
        params = {} if end_user is None else {"end_user": end_user}
        budget = client.get(path("admin", "budgets", budget_id), params=params)
    if as_json:
        print_json(budget)
        return
    print_fields(
        [
            ("id", budget["id"]),
            ("project", budget["project"]),
            ("of", _owner(budget)),
            ("limit", f"{_dollars(budget['limit_usd'])} {_per(budget)}, {budget['time_zone']}"),
            ("spent", _dollars(budget["spend_usd"])),
            ("reserved", _dollars(budget["reserved_usd"])),
            ("left", _dollars(budget["remaining_usd"])),
            ("resets", local_time(budget["resets_at"])),
            ("without room", budget["on_exceed"] if budget["hard"] else "warns only"),
            ("alerts at", ", ".join(f"{share:.0%}" for share in budget["alert_at"]) or "-"),
        ]
    )


@budgets.command()
def create(
    context: typer.Context,
    project: Annotated[str, typer.Argument(metavar="PROJECT")],
    limit_usd: Annotated[float, typer.Option("--limit-usd", metavar="DOLLARS", help="Dollars in each window.")],
    period: Annotated[
        Period, typer.Option(metavar="PERIOD", help="How long a window is: hour, day, week, month or total.")
    ],
    time_zone: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where its windows begin: Europe/Berlin.  [default: UTC]")
    ] = None,
    key: Annotated[str | None, typer.Option(metavar="ID", help="Only jobs of this key count: key_12.")] = None,
    end_user: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only jobs of this end user count. '*': each has this budget.")
    ] = None,
    hard: Hard = None,
    on_exceed: OnExceed = None,
    alert_at: AlertAt = None,
    as_json: Json = False,
) -> None:
    """Create a budget of a project, or of one of its keys or end users."""
    body: dict[str, Any] = {"project": project, "limit_usd": limit_usd, "period": period.value}
    given = {"time_zone": time_zone, "key": key, "end_user": end_user}
    body |= {name: value for name, value in given.items() if value is not None}
    with connect(context) as client:
        budget = client.post("/v1/admin/budgets", json=body | _changes(hard, on_exceed, alert_at))
    print_json(budget) if as_json else say(f"{budget['id']}  created")


@budgets.command("set")
def change(
    context: typer.Context,
    budget_id: BudgetId,
    limit_usd: LimitUsd = None,
    hard: Hard = None,
    on_exceed: OnExceed = None,
    alert_at: AlertAt = None,
    as_json: Json = False,
) -> None:
    """Change a budget: only what is given. What was spent remains."""
    body = _changes(hard, on_exceed, alert_at) | ({} if limit_usd is None else {"limit_usd": limit_usd})
    if not body:
        raise UsageError("There is nothing to change: give an option such as --limit-usd.")
    with connect(context) as client:
        budget = client.patch(path("admin", "budgets", budget_id), json=body)
    print_json(budget) if as_json else say(f"{budget['id']}  changed")


@budgets.command()
def delete(
    context: typer.Context,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of budgets, such as budget_3.")],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete budgets, with what was spent in their windows."""
    if not yes:
        ask(f"Delete {', '.join(ids)}? It cannot be undone.")
    with connect(context) as client:
        of_each(
            ids,
            lambda budget_id: client.request("DELETE", path("admin", "budgets", budget_id)),
            lambda _, budget: f"{budget['id']}  deleted",
            as_json=as_json,
        )


def _changes(hard: bool | None, on_exceed: Exceeding | None, alert_at: list[float] | None) -> dict[str, Any]:
    body: dict[str, Any] = {} if hard is None else {"hard": hard}
    if on_exceed is not None:
        body["on_exceed"] = on_exceed.value
    if alert_at:
        body["alert_at"] = alert_at
    return body


def _row(budget: dict[str, Any]) -> list[object]:
    return [
        budget["id"],
        budget["project"],
        _owner(budget),
        f"{_dollars(budget['limit_usd'])} {_per(budget)}",
        _dollars(budget["spend_usd"]),
        _dollars(budget["reserved_usd"]),
        _dollars(budget["remaining_usd"]),
        local_time(budget["resets_at"]),
    ]


def _owner(budget: dict[str, Any]) -> str:
    names = [budget["key"]] if budget["key"] is not None else []
    if budget["end_user"] is not None:
        names.append("each end user" if budget["end_user"] == "*" else f"end user {budget['end_user']}")
    return ", ".join(names) or "all jobs"


def _per(budget: dict[str, Any]) -> str:
    return "in total" if budget["period"] == "total" else f"a {budget['period']}"


def _dollars(amount: float | None) -> str:
    if amount is None:
        return "-"
    # Amounts of single jobs are fractions of a cent.
    return f"${amount:,.2f}" if amount == 0 or abs(amount) >= 1 else f"${amount:.6f}"
