"""`headrace limits`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from cli.client import path
from cli.commands.jobs import of_each
from cli.errors import UsageError
from cli.groups import ListGroup
from cli.options import After, All, Json, Limit, Yes, ask, connect, show_list
from cli.output import Column, print_json, say
from cli.text import count, one_line

limits = typer.Typer(cls=ListGroup, help="List, create, change and delete limits.", rich_markup_mode=None)

NONE = "none"
VALUES = ("requests_per_minute", "tokens_per_minute", "concurrent_jobs", "queued_jobs", "open_streams")
COLUMNS = (
    Column("LIMIT"),
    Column("PROJECT"),
    Column("KEY", drop=3),
    Column("END USER", drop=2),
    Column("MODEL", drop=1),
    Column("REQUESTS/MIN", right=True),
    Column("TOKENS/MIN", right=True),
    Column("CONCURRENT", right=True, drop=6),
    Column("QUEUED", right=True, drop=5),
    Column("STREAMS", right=True, drop=4),
    Column("MODE", drop=7),
)


class Mode(StrEnum):
    """What happens to a request above a limit."""

    HARD = "hard"
    SOFT = "soft"


Requests = Annotated[str | None, typer.Option("--requests", metavar="N", help="Requests a minute.")]
Tokens = Annotated[str | None, typer.Option("--tokens", metavar="N", help="Tokens a minute.")]
Concurrent = Annotated[
    str | None, typer.Option("--concurrent-jobs", metavar="N", help="Queued and running jobs, without batches.")
]
Queued = Annotated[str | None, typer.Option("--queued-jobs", metavar="N", help="Queued jobs, without batches.")]
Streams = Annotated[
    str | None, typer.Option("--open-streams", metavar="N", help="Open event streams in one API process.")
]
ModeOption = Annotated[
    Mode | None, typer.Option(help="Above the limit: refuse requests (hard), or let them wait in the queue (soft).")
]


@limits.command("list")
def list_limits(
    context: typer.Context,
    project: Annotated[str | None, typer.Option(metavar="NAME", help="Only limits of this project.")] = None,
    limit: Limit = 20,
    after: After = None,
    everything: All = False,
    as_json: Json = False,
) -> None:
    """List limits, newest first."""
    params = {name: value for name, value in (("project", project), ("after", after)) if value is not None}
    with connect(context) as client:
        shown = None if everything else limit
        show_list(client, "/v1/admin/limits", params, shown, COLUMNS, _row, as_json=as_json, empty="No limits.")


@limits.command()
def create(
    context: typer.Context,
    project: Annotated[
        str | None, typer.Option(metavar="NAME", help="The project. Without it and --key: the default of all projects.")
    ] = None,
    key: Annotated[str | None, typer.Option(metavar="ID", help="Only requests with this key: key_12.")] = None,
    user: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only requests for this end user; '*': for each one.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", metavar="NAME", help="Only this model.")] = None,
    requests: Requests = None,
    tokens: Tokens = None,
    concurrent_jobs: Concurrent = None,
    queued_jobs: Queued = None,
    open_streams: Streams = None,
    mode: ModeOption = None,
    as_json: Json = False,
) -> None:
    """Create a limit. Effective within seconds."""
    given = {"project": project, "key_id": key, "end_user": user, "model": model}
    body: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    body |= _values(requests, tokens, concurrent_jobs, queued_jobs, open_streams)
    if mode is not None:
        body["mode"] = mode.value
    with connect(context) as client:
        created = client.post("/v1/admin/limits", json=body)
    print_json(created) if as_json else say(f"{created['id']}  created")


@limits.command("set")
def change(
    context: typer.Context,
    limit_id: Annotated[str, typer.Argument(metavar="ID", help="The limit's id, such as limit_3.")],
    requests: Requests = None,
    tokens: Tokens = None,
    concurrent_jobs: Concurrent = None,
    queued_jobs: Queued = None,
    open_streams: Streams = None,
    mode: ModeOption = None,
    as_json: Json = False,
) -> None:
    """Change a limit; what is not given remains as it is, and `none` removes a value. Effective within seconds."""
    body = _values(requests, tokens, concurrent_jobs, queued_jobs, open_streams)
    if mode is not None:
        body["mode"] = mode.value
    if not body:
        raise UsageError("Give at least one option to change; `headrace limits set --help` lists them.")
    with connect(context) as client:
        changed = client.patch(path("admin", "limits", limit_id), json=body)
    print_json(changed) if as_json else say(f"{changed['id']}  changed")


@limits.command()
def show(
    context: typer.Context,
    limit_id: Annotated[str, typer.Argument(metavar="ID", help="The limit's id, such as limit_3.")],
    as_json: Json = False,
) -> None:
    """Show a limit, and what is left of it."""
    with connect(context) as client:
        limit = client.get(path("admin", "limits", limit_id))
    if as_json:
        print_json(limit)
        return
    for name in ("id", "project", "key_id", "end_user", "model", *VALUES, "mode"):
        if limit[name] is not None:
            say(f"{name:<20} {count(limit[name]) if name in VALUES else one_line(limit[name])}")
    for unit, left in (limit["left"] or {}).items():
        full = f"; full again in {left['reset_s']:.0f} s" if left["reset_s"] else ""
        say(f"{unit + ' left':<20} {count(left['remaining'])} of {count(left['limit'])}{full}")


@limits.command()
def delete(
    context: typer.Context,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of limits, such as limit_3.")],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete limits."""
    if not yes:
        ask(f"Delete {', '.join(ids)}?")
    with connect(context) as client:
        of_each(
            ids,
            lambda limit_id: client.request("DELETE", path("admin", "limits", limit_id)),
            lambda _, limit: f"{limit['id']}  deleted",
            as_json=as_json,
        )


def _values(*texts: str | None) -> dict[str, Any]:
    """The values in the body of a request, in the order of `VALUES`; None removes one."""
    return {name: _number(text, name) for name, text in zip(VALUES, texts, strict=True) if text is not None}


def _number(text: str, name: str) -> int | None:
    if text == NONE:
        return None
    if not (text.isascii() and text.isdecimal()):
        option = name.removesuffix("_per_minute").replace("_", "-")
        raise UsageError(f"--{option} must be a number, or {NONE}; got {one_line(text)!r}.")
    return int(text)


def _row(limit: dict[str, Any]) -> list[object]:
    scope = [limit[name] or "-" for name in ("key_id", "end_user", "model")]
    values = ["-" if limit[name] is None else count(limit[name]) for name in VALUES]
    return [limit["id"], limit["project"] or "(all)", *scope, *values, limit["mode"]]
