"""`headrace webhooks`."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated, Any

import typer

from cli.client import Client, path
from cli.commands.jobs import moment, of_each
from cli.errors import ExitCode, UsageError
from cli.groups import ListGroup
from cli.options import After, All, Json, Limit, Yes, ask, connect, seconds_of, show_list
from cli.output import Column, note, print_fields, print_json, say, status_text
from cli.text import local_time

webhooks = typer.Typer(
    cls=ListGroup,
    help="List, add, test and remove webhook endpoints; see and replay deliveries.",
    rich_markup_mode=None,
)

ENDPOINTS, DELIVERIES, SECRET = "/v1/webhooks/endpoints", "/v1/webhooks/deliveries", "/v1/webhooks/secret"
# How long a test waits for its outcome, and how often it looks.
TEST_S, POLL_S = 15.0, 0.2
COLUMNS = (
    Column("ENDPOINT"),
    Column("URL"),
    Column("EVENTS", drop=1),
    Column("STATE"),
    Column("CREATED", drop=2),
)
DELIVERY_COLUMNS = (
    Column("DELIVERY"),
    Column("EVENT"),
    Column("OF", drop=1),
    Column("TO", drop=2),
    Column("STATE"),
    Column("TRIES", right=True),
    Column("LAST"),
    Column("CREATED", drop=3),
)


class State(StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


EndpointId = Annotated[str, typer.Argument(metavar="ID", help="The endpoint's id: endpoint_...")]
Endpoint = Annotated[str | None, typer.Option(metavar="ID", help="Only deliveries to this endpoint.")]
Type = Annotated[str | None, typer.Option(metavar="EVENT", help="Only events of this type: job.failed.")]
Overlap = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="How long the old secret signs too: 1h, 0s for not at all.  [default: 24h]"),
]


@webhooks.command("list")
def list_endpoints(
    context: typer.Context, limit: Limit = 20, after: After = None, everything: All = False, as_json: Json = False
) -> None:
    """List the webhook endpoints of the project, newest first."""
    params = {} if after is None else {"after": after}
    with connect(context) as client:
        shown = None if everything else limit
        show_list(client, ENDPOINTS, params, shown, COLUMNS, _row, as_json=as_json, empty="No webhook endpoints.")


@webhooks.command()
def add(
    context: typer.Context,
    url: Annotated[str, typer.Argument(metavar="URL", help="Where events are sent.")],
    event: Annotated[
        list[str] | None,
        typer.Option(metavar="EVENT", help="A type such as job.failed, or a group such as job.*. Repeatable."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Send the whole object, instead of its id.")] = False,
    description: Annotated[str | None, typer.Option(metavar="TEXT", help="What it is for.")] = None,
    as_json: Json = False,
) -> None:
    """Add an endpoint, and print its secret: once. Without --event, it receives all events."""
    body: dict[str, Any] = {"url": url, "events": event or ["*"], "full": full}
    if description is not None:
        body["description"] = description
    with connect(context) as client:
        _show_secret(client.post(ENDPOINTS, json=body), as_json=as_json)


@webhooks.command("set")
def change(
    context: typer.Context,
    endpoint_id: EndpointId,
    url: Annotated[str | None, typer.Option(metavar="URL", help="Where events are sent.")] = None,
    event: Annotated[
        list[str] | None, typer.Option(metavar="EVENT", help="Replace its events by this one. Repeatable.")
    ] = None,
    full: Annotated[
        bool | None, typer.Option("--full/--thin", help="Whether the whole object is sent, or its id.")
    ] = None,
    enabled: Annotated[
        bool | None, typer.Option("--enable/--disable", help="Whether it receives events at all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Change an endpoint: only what is given."""
    given = {"url": url, "events": event or None, "full": full, "enabled": enabled}
    body = {name: value for name, value in given.items() if value is not None}
    if not body:
        raise UsageError("There is nothing to change: give an option such as --event.")
    with connect(context) as client:
        endpoint = client.patch(path("webhooks", "endpoints", endpoint_id), json=body)
    print_json(endpoint) if as_json else say(f"{endpoint['id']}  changed")


@webhooks.command()
def rotate(
    context: typer.Context,
    endpoint_id: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="Without it: the secret of the webhooks that requests name themselves."),
    ] = None,
    overlap: Overlap = None,
    as_json: Json = False,
) -> None:
    """Replace a secret, and print the new one. Until the overlap ends, deliveries are signed with both."""
    body: dict[str, Any] = {} if overlap is None else {"overlap_s": int(seconds_of(overlap, "--overlap"))}
    at = f"{SECRET}/rotate" if endpoint_id is None else path("webhooks", "endpoints", endpoint_id, "rotate")
    with connect(context) as client:
        _show_secret(client.post(at, json=body), as_json=as_json)


@webhooks.command()
def secret(context: typer.Context, as_json: Json = False) -> None:
    """Print the secret of the webhooks that requests name themselves."""
    with connect(context) as client:
        found = client.get(SECRET)
    print_json(found) if as_json else say(found["secret"])


@webhooks.command()
def remove(
    context: typer.Context,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of endpoints.")],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Remove endpoints, with their deliveries."""
    if not yes:
        ask(f"Remove {', '.join(ids)}? Pending deliveries are lost.")
    with connect(context) as client:
        of_each(
            ids,
            lambda endpoint_id: client.request("DELETE", path("webhooks", "endpoints", endpoint_id)),
            lambda _, endpoint: f"{endpoint['id']}  removed",
            as_json=as_json,
        )


@webhooks.command("test")
def send_test(context: typer.Context, endpoint_id: EndpointId, as_json: Json = False) -> None:
    """Send a test event to an endpoint, and wait for the first try. The exit code is 1 if it is not delivered."""
    with connect(context) as client:
        delivery = client.post(path("webhooks", "endpoints", endpoint_id, "test"))
        delivery = _first_try(client, delivery["id"])
    print_json(delivery) if as_json else _print_delivery(delivery)
    if delivery["state"] != State.DELIVERED:
        raise typer.Exit(ExitCode.FAILED)


@webhooks.command()
def deliveries(
    context: typer.Context,
    endpoint: Endpoint = None,
    state: Annotated[
        State | None, typer.Option(metavar="STATE", help="Only those that are pending, delivered or dead.")
    ] = None,
    event: Type = None,
    limit: Limit = 20,
    after: After = None,
    everything: All = False,
    as_json: Json = False,
) -> None:
    """List deliveries, newest first, with the outcome of their last try."""
    given = {"endpoint": endpoint, "state": None if state is None else state.value, "type": event, "after": after}
    params = {name: value for name, value in given.items() if value is not None}
    with connect(context) as client:
        shown = None if everything else limit
        show_list(
            client, DELIVERIES, params, shown, DELIVERY_COLUMNS, _delivery_row, as_json=as_json, empty="No deliveries."
        )


@webhooks.command()
def delivery(
    context: typer.Context,
    delivery_id: Annotated[str, typer.Argument(metavar="ID", help="The delivery's id, such as delivery_3.")],
    as_json: Json = False,
) -> None:
    """Show a delivery and its tries."""
    with connect(context) as client:
        found = client.get(path("webhooks", "deliveries", delivery_id))
    print_json(found) if as_json else _print_delivery(found)


@webhooks.command()
def replay(
    context: typer.Context,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID...]", help="Deliveries that have ended: delivery_3.")
    ] = None,
    dead_since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="All dead ones since then: a duration ago (2h, 7d), or a timestamp."),
    ] = None,
    endpoint: Endpoint = None,
    event: Type = None,
    as_json: Json = False,
) -> None:
    """Send deliveries again, under the same event ids: some by their ids, or all dead ones since a time."""
    if bool(ids) == (dead_since is not None):
        raise UsageError("Give ids of deliveries, or --dead-since.")
    with connect(context) as client:
        if ids:
            of_each(
                ids,
                lambda delivery_id: client.post(path("webhooks", "deliveries", delivery_id, "replay")),
                lambda _, found: f"{found['id']}  {found['state']}",
                as_json=as_json,
            )
            return
        given = {"since": moment(dead_since, "--dead-since"), "endpoint": endpoint, "type": event}
        body = {name: value for name, value in given.items() if value is not None}
        found = client.post(f"{DELIVERIES}/replay", json=body)
    print_json(found) if as_json else say(f"{found['replayed']} sent again")
    if found["has_more"]:
        note("There are more: run the command again.", style="dim")


def _first_try(client: Client, delivery_id: str) -> dict[str, Any]:
    """The delivery once it was tried, or after `TEST_S` seconds."""
    ends = time.monotonic() + TEST_S
    while True:
        found = client.get(path("webhooks", "deliveries", delivery_id))
        if found["tries"] or found["state"] != State.PENDING or time.monotonic() > ends:
            return found
        time.sleep(POLL_S)


def _show_secret(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    say(found["secret"])
    if "id" in found:
        note(f"{found['id']}: its secret is shown only now.", style="dim")
    if found["old_secret_expires_at"] is not None:
        note(f"The old secret signs too until {local_time(found['old_secret_expires_at'])}.", style="dim")


def _row(endpoint: dict[str, Any]) -> list[object]:
    return [
        endpoint["id"],
        endpoint["url"],
        ", ".join(endpoint["events"]),
        _state(endpoint),
        local_time(endpoint["created_at"]),
    ]


def _state(endpoint: dict[str, Any]) -> str:
    if not endpoint["enabled"]:
        return f"disabled ({endpoint['disabled_reason']})"
    if endpoint["paused_until"] is not None:
        return f"failing ({endpoint['failures']})"
    return "enabled"


def _delivery_row(found: dict[str, Any]) -> list[object]:
    return [
        found["id"],
        found["type"],
        found["object_id"],
        found["endpoint"] or found["url"],
        status_text(found["state"]),
        found["tries"],
        _outcome(found["last_status"], found["last_error"]),
        local_time(found["created_at"]),
    ]


def _outcome(status: int | None, error: str | None) -> str:
    return " ".join(str(one) for one in (status, error) if one is not None) or "-"


def _print_delivery(found: dict[str, Any]) -> None:
    print_fields(
        [
            ("id", found["id"]),
            ("event", f"{found['type']} of {found['object_id']}"),
            ("webhook-id", found["event_id"]),
            ("to", " ".join(one for one in (found["endpoint"], found["url"]) if one is not None)),
            ("state", status_text(found["state"])),
            ("next try", None if found["next_try_at"] is None else local_time(found["next_try_at"])),
            *(
                (
                    f"try {one['number']}",
                    f"{local_time(one['at'])}  {_outcome(one['status'], one['error'])}  {one['duration_ms']} ms",
                )
                for one in found["try_log"]
            ),
        ]
    )
