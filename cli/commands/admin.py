"""`headrace audit` and `headrace prices`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.options import After, All, Json, Limit, complete_models, connect, show_list
from cli.output import Column
from cli.text import count, local_time, to_json

AUDIT_COLUMNS = (
    Column("TIME"),
    Column("BY", drop=2),
    Column("ACTION"),
    Column("OBJECT"),
    Column("PROJECT", drop=3),
    Column("CHANGE", drop=1),
)
PRICE_COLUMNS = (
    Column("MODEL"),
    Column("TIER", drop=1),
    Column("FROM TOKENS", right=True, drop=5),
    Column("INPUT", right=True),
    Column("CACHED", right=True, drop=3),
    Column("OUTPUT", right=True),
    Column("REASONING", right=True, drop=4),
    Column("VALID FROM", drop=2),
    Column("SOURCE", drop=6),
)


def audit(
    context: typer.Context,
    project: Annotated[str | None, typer.Option(metavar="NAME", help="Only changes in this project.")] = None,
    key: Annotated[str | None, typer.Option(metavar="ID", help="Only changes that this key has made.")] = None,
    action: Annotated[
        str | None, typer.Option(metavar="ACTION", help="Only this action: key.revoke; or all of a kind: key.")
    ] = None,
    object_id: Annotated[
        str | None, typer.Option("--object", metavar="ID", help="Only changes of the object with this id: key_12.")
    ] = None,
    limit: Limit = 20,
    after: After = None,
    everything: All = False,
    as_json: Json = False,
) -> None:
    """List what operators have changed, newest first."""
    given = {"project": project, "key": key, "action": action, "object": object_id, "after": after}
    params = {name: value for name, value in given.items() if value is not None}
    with connect(context) as client:
        shown = None if everything else limit
        show_list(
            client, "/v1/admin/audit", params, shown, AUDIT_COLUMNS, _audit_row, as_json=as_json, empty="No changes."
        )


def _audit_row(entry: dict[str, Any]) -> list[object]:
    by = "command line" if entry["key"] is None else f"{entry['key_name'] or '-'} ({entry['key']})"
    return [
        local_time(entry["at"]),
        by,
        entry["action"],
        entry["object_id"],
        entry["project"] or "-",
        _change(entry["before"], entry["after"]),
    ]


def _change(before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    """What has changed: `priority_floor: 3 -> 0`; of a new object its values, and of a deleted one nothing."""
    if after is None:
        return "-"
    shown = {name: to_json(value) for name, value in after.items()}
    if before is None:
        return ", ".join(f"{name}: {text}" for name, text in shown.items() if text not in ("null", "{}"))
    return ", ".join(f"{name}: {to_json(before.get(name))} -> {text}" for name, text in shown.items())


def prices(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="NAME", autocompletion=complete_models, help="Only prices of this model."
        ),
    ] = None,
    history: Annotated[
        bool, typer.Option("--history", help="Also prices that were replaced, or are not valid yet.")
    ] = False,
    limit: Limit = 100,
    after: After = None,
    everything: All = False,
    as_json: Json = False,
) -> None:
    """List the prices of models, in dollars per million tokens. They come from models.yaml."""
    given = {"model": model, "after": after, "history": "true" if history else None}
    params = {name: value for name, value in given.items() if value is not None}
    with connect(context) as client:
        shown = None if everything else limit
        show_list(
            client, "/v1/admin/prices", params, shown, PRICE_COLUMNS, _price_row, as_json=as_json, empty="No prices."
        )


def _price_row(price: dict[str, Any]) -> list[object]:
    return [
        price["model"],
        price["tier"],
        count(price["from_input_tokens"]),
        *(price[name] or "-" for name in ("input", "cache_read", "output", "reasoning")),
        local_time(price["valid_from"]),
        price["source"],
    ]
