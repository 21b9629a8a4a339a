"""`headrace keys` and `headrace projects`."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from cli.client import path
from cli.commands.jobs import of_each
from cli.commands.key_changes import NONE, UNSET, AllowedModels, KeyLogLevel, change_key, level_or_null, model_names
from cli.commands.privacy import read_rules
from cli.errors import UsageError
from cli.groups import ListGroup
from cli.options import After, All, Json, Limit, Yes, ask, connect, seconds_of, show_list
from cli.output import Column, note, print_json, say, status_text
from cli.text import age, count, local_time, parse_time

keys = typer.Typer(cls=ListGroup, help="List, create, change, rotate and revoke API keys.", rich_markup_mode=None)
projects = typer.Typer(cls=ListGroup, help="List, create and change projects.", rich_markup_mode=None)

KEY_COLUMNS = (
    Column("KEY"),
    Column("NAME"),
    Column("PROJECT", drop=1),
    Column("STATE", drop=2),
    Column("LAST USED", right=True, drop=3),
    Column("AGE", right=True, drop=6),
    Column("SCOPES", drop=4),
    Column("PREFIX", drop=5),
)
PROJECT_COLUMNS = (
    Column("PROJECT"),
    Column("TIER", drop=2),
    Column("LOG", drop=3),
    Column("VALID KEYS", right=True),
    Column("AGE", right=True, drop=1),
)
ProjectLogLevel = Annotated[
    str | None,
    typer.Option(
        metavar="LEVEL",
        help="At most this is kept in the request log: none, metadata, redacted or full; unset: what the installation"
        " keeps.",
    ),
]
Redaction = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="What is removed from logged bodies: rules in a JSON file, which replace all earlier ones; unset: the"
        " default. Try them first: headrace redact TEXT --rules FILE.",
    ),
]
Expires = Annotated[
    str | None, typer.Option(metavar="DURATION", help="How long the key is valid: 90d. Without it: for ever.")
]


class Scope(StrEnum):
    """What a key may be used for."""

    INFERENCE = "inference"
    LOGS = "logs"
    ADMIN = "admin"
    ERASE = "erase"


@keys.command("list")
def list_keys(
    context: typer.Context,
    project: Annotated[str | None, typer.Option(metavar="NAME", help="Only keys of this project.")] = None,
    limit: Limit = 20,
    after: After = None,
    everything: All = False,
    as_json: Json = False,
) -> None:
    """List API keys, newest first; also those that were revoked or have expired."""
    params = {name: value for name, value in (("project", project), ("after", after)) if value is not None}
    with connect(context) as client:
        shown = None if everything else limit
        show_list(client, "/v1/admin/keys", params, shown, KEY_COLUMNS, _key_row, as_json=as_json, empty="No keys.")


@keys.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name to recognize the key by.")],
    project: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The project, created if it is missing. Without it: a new one of this name."),
    ] = None,
    scope: Annotated[
        list[Scope] | None,
        typer.Option(metavar="SCOPE", help="inference, logs or admin. Repeatable.  [default: inference]"),
    ] = None,
    expires: Expires = None,
    priority_floor: Annotated[
        int | None, typer.Option(min=0, max=9, metavar="0-9", help="The most urgent priority of its jobs.")
    ] = None,
    allowed_models: AllowedModels = None,
    log_level: KeyLogLevel = None,
    as_json: Json = False,
) -> None:
    """Create an API key and print it, once; only its hash is stored."""
    body: dict[str, Any] = {"name": name, "scopes": [item.value for item in scope or [Scope.INFERENCE]]}
    given = {"project": project, "priority_floor": priority_floor}
    body |= {key: value for key, value in given.items() if value is not None}
    if expires is not None:
        body["expires_in_s"] = seconds_of(expires, "--expires")
    if allowed_models is not None:
        body["options"] = {"allowed_models": model_names(allowed_models)}
    if log_level is not None:
        body.setdefault("options", {})["log_level"] = level_or_null(log_level)
    with connect(context) as client:
        _show_secret(client.post("/v1/admin/keys", json=body), as_json=as_json)


keys.command("set")(change_key)


@keys.command()
def rotate(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, such as key_12.")],
    overlap: Annotated[str, typer.Option(metavar="DURATION", help="How long the old key remains valid.")] = "24h",
    expires: Expires = None,
    as_json: Json = False,
) -> None:
    """Create the successor of a key, with the same rights, and print it once.

    Limits and budgets of the old key do not apply to it: create them for it.
    """
    body = {"overlap_s": seconds_of(overlap, "--overlap")}
    if expires is not None:
        body["expires_in_s"] = seconds_of(expires, "--expires")
    with connect(context) as client:
        _show_secret(client.post(path("admin", "keys", key_id, "rotate"), json=body), as_json=as_json)


@keys.command()
def revoke(
    context: typer.Context,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of keys, such as key_12.")],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Revoke keys: their requests are refused and their streams closed, within seconds. It cannot be undone."""
    if not yes:
        ask(f"Revoke {', '.join(ids)}? It cannot be undone.")
    with connect(context) as client:
        of_each(
            ids,
            lambda key_id: client.post(path("admin", "keys", key_id, "revoke")),
            lambda _, key: f"{key['id']}  revoked",
            as_json=as_json,
        )


def _show_secret(key: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(key)
        return
    say(key["secret"])
    note(f"This key is shown once; only its hash is stored. Its id is {key['id']}.")


def _key_row(key: dict[str, Any]) -> list[object]:
    return [
        key["id"],
        key["name"],
        key["project"],
        status_text(_state(key)),
        "never" if key["last_used_at"] is None else age(key["last_used_at"]),
        age(key["created_at"]),
        ", ".join(key["scopes"]),
        key["prefix"] or "-",
    ]


def _state(key: dict[str, Any]) -> str:
    if key["revoked_at"] is not None:
        return "revoked"
    if key["expires_at"] is None:
        return "valid"
    if parse_time(key["expires_at"]) <= datetime.now(UTC):
        return "expired"
    return f"until {local_time(key['expires_at'])[:16]}"


@projects.command("list")
def list_projects(
    context: typer.Context, limit: Limit = 20, after: After = None, everything: All = False, as_json: Json = False
) -> None:
    """List projects, by name."""
    with connect(context) as client:
        params = {"after": after} if after else {}
        shown = None if everything else limit
        show_list(
            client,
            "/v1/admin/projects",
            params,
            shown,
            PROJECT_COLUMNS,
            _project_row,
            as_json=as_json,
            empty="No projects.",
        )


@projects.command("create")
def create_project(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    tier: Annotated[
        str | None, typer.Option(metavar="NAME", help="A class of service, for the rules of routes: free.")
    ] = None,
    log_level: ProjectLogLevel = None,
    redaction: Redaction = None,
    as_json: Json = False,
) -> None:
    """Create a project without keys."""
    body: dict[str, Any] = {"name": name} | ({"tier": tier} if tier is not None else {})
    if options := _project_options(log_level, redaction):
        body["options"] = options
    with connect(context) as client:
        project = client.post("/v1/admin/projects", json=body)
    print_json(project) if as_json else say(f"{project['name']}  created")


@projects.command("set")
def change_project(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    tier: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"A class of service, for the rules of routes: free; or {NONE}.")
    ] = None,
    log_level: ProjectLogLevel = None,
    redaction: Redaction = None,
    as_json: Json = False,
) -> None:
    """Change a project; what is not given remains as it is. Effective within seconds."""
    body: dict[str, Any] = {} if tier is None else {"tier": None if tier == NONE else tier}
    if options := _project_options(log_level, redaction):
        body["options"] = options
    if not body:
        raise UsageError("Give at least one option to change; `headrace projects set --help` lists them.")
    with connect(context) as client:
        project = client.patch(path("admin", "projects", name), json=body)
    print_json(project) if as_json else say(f"{project['name']}  changed")


def _project_options(log_level: str | None, redaction: str | None) -> dict[str, Any]:
    """The changes of a project's options, as a JSON Merge Patch."""
    options: dict[str, Any] = {}
    if log_level is not None:
        options["log_level"] = level_or_null(log_level)
    if redaction is not None:
        options["redaction"] = None if redaction == UNSET else read_rules(redaction)
    return options


def _project_row(project: dict[str, Any]) -> list[object]:
    return [
        project["name"],
        project["tier"] or "-",
        project["options"].get("log_level") or "-",
        count(project["keys"]),
        age(project["created_at"]),
    ]
