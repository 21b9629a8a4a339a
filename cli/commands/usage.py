"""`headrace usage`: what was used and what it cost, and the statement of a month."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.client import Client, path
from cli.groups import ListGroup
from cli.options import All, Json, connect
from cli.output import Column, note, print_json, print_table, write_text
from cli.text import count, dollars, percent

usage = typer.Typer(cls=ListGroup, help="Show what was used, and what it cost.", rich_markup_mode=None)

PAGE = 1000
NONE = "There was no usage."
NOTHING_SAVED = "Nothing was saved."
# The engine of usage of which it is not known.
UNKNOWN = "unknown"
SUM_COLUMNS = (
    Column("REQUESTS", right=True, drop=3),
    Column("INPUT", right=True, drop=4),
    Column("CACHED", right=True, drop=5),
    Column("OUTPUT", right=True, drop=4),
    Column("COST", right=True, drop=1),
    Column("CHARGE", right=True),
    Column("SAVED", right=True, drop=6),
)
LINE_COLUMNS = (Column("MODEL"), Column("TIER", drop=7), Column("BATCH", drop=8), *SUM_COLUMNS)
SAVINGS_COLUMNS = (
    Column("BY"),
    Column("INSTEAD OF", drop=1),
    Column("REQUESTS", right=True, drop=2),
    Column("INPUT", right=True),
    Column("OUTPUT", right=True),
    Column("SAVED", right=True),
)

Project = Annotated[str | None, typer.Option("--project", metavar="NAME", help="The project; needs an admin key.")]
TimeZone = Annotated[str, typer.Option("--time-zone", metavar="ZONE", help="Where days and months begin.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV, with exact amounts.")]


@usage.command("list")
def list_usage(
    context: typer.Context,
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by",
            "-b",
            metavar="GROUP",
            help="day, month, project, key, user, model, engine, requested_model, kind, service_tier or batch; repeat"
            " it for several. By default day.",
        ),
    ] = None,
    start: Annotated[str | None, typer.Option(metavar="DATE", help="The first day; by default 30 days ago.")] = None,
    end: Annotated[str | None, typer.Option(metavar="DATE", help="The day after the last one.")] = None,
    time_zone: TimeZone = "UTC",
    project: Project = None,
    key: Annotated[str | None, typer.Option(metavar="ID", help="Only usage with this key.")] = None,
    user: Annotated[str | None, typer.Option(metavar="NAME", help="Only usage of this end user.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", metavar="NAME", help="Only this model.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="The number of rows to show.")] = 100,
    show_all: All = False,
    csv: Csv = False,
    as_json: Json = False,
) -> None:
    """Show sums of usage, of the key's project, or of all projects if it has the scope `admin`."""
    groups = by or ["day"]
    params: dict[str, Any] = {"group_by": groups, "time_zone": time_zone}
    filters = {"start": start, "end": end, "project": project, "key": key, "user": user, "model": model}
    params |= {name: value for name, value in filters.items() if value is not None}
    with connect(context) as client:
        if csv:
            _print_csv(client, path("usage"), params)
            return
        items, has_more = _items(client, params, None if show_all else limit)
    if as_json:
        for item in items:
            print_json(item)
    else:
        columns = tuple(Column(group.upper().replace("_", " ")) for group in groups)
        rows = [[*(_group(item, group) for group in groups), *_sums(item)] for item in items]
        print_table((*columns, *SUM_COLUMNS), rows, empty=NONE)
        _note_unpriced(sum(item["unpriced"] for item in items))
    if has_more:
        note("There are more rows: add --all, or raise --limit.", style="dim")


@usage.command()
def statement(
    context: typer.Context,
    month: Annotated[str, typer.Argument(metavar="MONTH", help="Such as 2026-11.")],
    project: Project = None,
    time_zone: TimeZone = "UTC",
    csv: Csv = False,
    as_json: Json = False,
) -> None:
    """Show what a project has used in a month, by model."""
    params = {"month": month, "time_zone": time_zone, **({} if project is None else {"project": project})}
    with connect(context) as client:
        if csv:
            _print_csv(client, path("usage", "statement"), params)
            return
        found = client.get(path("usage", "statement"), params=params)
    if as_json:
        print_json(found)
        return
    rows = [[line["model"], line["service_tier"], _value(line["batch"]), *_sums(line)] for line in found["lines"]]
    total = ["total", "", "", *_sums(found["total"])]
    print_table(LINE_COLUMNS, [*rows, total] if rows else [], empty=NONE)
    _note_unpriced(found["total"]["unpriced"])
    if not found["complete"]:
        note(f"The statement of {found['project']} for {found['month']} is not complete yet.", style="yellow")


@usage.command()
def savings(
    context: typer.Context,
    days: Annotated[int, typer.Option(min=1, max=90, metavar="N", help="The last days up to now.")] = 7,
    as_json: Json = False,
) -> None:
    """Show what routes and caches have saved in the key's project, in tokens and in dollars."""
    with connect(context) as client:
        found = client.get(path("savings"), params={"days": days})
    if as_json:
        print_json(found)
        return
    rows = [
        _saved(f"route {one['route']}", (one["baseline"] or {}).get("model"), one["saved"], one.get("saved_usd"))
        for one in found["routes"]
    ]
    for name, title in (("response_cache", "response cache"), ("coalescing", "identical requests")):
        if found[name]["requests"]:
            rows.append(_saved(title, None, found[name], found[name].get("saved_usd")))
    if cached := found["prompt_cache"]["cached_tokens"]:
        rows.append(["prompt caches", "-", "-", count(cached), "-", dollars(found["prompt_cache"].get("saved_usd"))])
    print_table(SAVINGS_COLUMNS, rows, empty=NOTHING_SAVED)
    for note_of in sorted({one["note"] for one in found["routes"] if one["note"]}):
        note(note_of, style="dim")


def _saved(by: str, instead_of: str | None, saved: dict[str, Any] | None, amount: float | None) -> list[str]:
    numbers = ("requests", "prompt_tokens", "completion_tokens")
    counts = (count(None if saved is None else saved[name]) for name in numbers)
    return [by, instead_of or "-", *counts, dollars(amount)]


def _items(client: Client, params: dict[str, Any], limit: int | None) -> tuple[list[dict[str, Any]], bool]:
    """Up to `limit` rows (None: all), and whether there are more."""
    items: list[dict[str, Any]] = []
    page: str | None = None
    while limit is None or len(items) < limit:
        size = PAGE if limit is None else min(PAGE, limit - len(items))
        found = client.get(path("usage"), params={**params, "limit": size, **({"page": page} if page else {})})
        items += found["data"]
        page = found["next_page"]
        if page is None:
            return items, False
    return items, True


def _print_csv(client: Client, address: str, params: dict[str, Any]) -> None:
    write_text(client.send("GET", address, params={**params, "format": "csv"}).text)


def _sums(item: dict[str, Any]) -> list[str]:
    return [
        count(item["requests"]),
        count(item["input_tokens"]),
        percent(item["cached_input_share"]),
        count(item["output_tokens"]),
        dollars(item["cost"]),
        dollars(item["charge"]),
        dollars(item["saved"]),
    ]


def _group(item: dict[str, Any], name: str) -> str:
    return UNKNOWN if name == "engine" and item[name] is None else _value(item.get(name))


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _note_unpriced(unpriced: int) -> None:
    if unpriced:
        note(f"{count(unpriced)} attempts have no price, and are not in the amounts.", style="yellow")
