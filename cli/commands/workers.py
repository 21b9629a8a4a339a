"""`headrace workers`: what runs where, and how full it is."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.client import Client, path
from cli.commands.jobs import of_each
from cli.errors import Refused
from cli.groups import ListGroup
from cli.options import Json, connect
from cli.output import Column, note, print_json, print_table, status_text
from cli.text import age, count, percent, rate

workers = typer.Typer(cls=ListGroup, help="List workers, and drain them.", rich_markup_mode=None)

COLUMNS = (
    Column("WORKER"),
    Column("STATE"),
    Column("MODEL", drop=1),
    Column("RUNNING", right=True, drop=2),
    Column("WAITING", right=True, drop=6),
    Column("KV CACHE", right=True, drop=3),
    Column("SPEED", right=True, drop=4),
    Column("UP", right=True, drop=5),
    Column("VERSION", drop=8),
    Column("PROBLEM", drop=7),
)


@workers.command("list")
def list_workers(context: typer.Context, as_json: Json = False) -> None:
    """List the workers, by model. Those that have died or were drained are listed for an hour."""
    with connect(context) as client:
        found = client.get("/v1/workers")
    if as_json:
        for worker in found["data"]:
            print_json(worker)
        return
    print_table(
        COLUMNS, map(worker_row, found["data"]), empty="There are no workers. Start one:  make worker MODEL=NAME"
    )
    for pause in found["paused"]:
        note(f"The queue of {pause['model']} has been paused for {age(pause['paused_at'])}.", style="yellow")


def read_fleet(client: Client) -> dict[str, Any] | None:
    """The workers and the paused queues; None if the key has no `admin` scope."""
    try:
        return client.get("/v1/workers")
    except Refused:
        return None


def paused_models(fleet: dict[str, Any] | None) -> dict[str, str] | None:
    """Since when queues are paused, by model; None if it is not known."""
    return None if fleet is None else {pause["model"]: pause["paused_at"] for pause in fleet["paused"]}


def worker_row(worker: dict[str, Any]) -> list[object]:
    """The cells of a worker. What one that is not alive reported last is not shown as if it were so now."""
    breaker = worker["breaker"]
    problem = f"breaker open for {age(breaker['since'])}: {breaker['reason']}" if breaker else worker["last_error"]
    return [
        worker["id"],
        status_text(worker["state"] if worker["alive"] or worker["state"] == "drained" else "lost"),
        worker["model"],
        *(_load(worker) if worker["alive"] else ["-"] * 5),
        worker["version"] or "-",
        problem or "",
    ]


def _load(worker: dict[str, Any]) -> list[str]:
    """How full a live worker is, how fast, and how long it has run."""
    usage = worker["kv_cache_usage"]
    return [
        f"{count(worker['running'])}/{count(worker['slots'])}",
        count(worker["waiting"]),
        percent(usage),
        rate(worker["tokens_per_s"]),
        age(worker["started_at"]),
    ]


@workers.command()
def drain(
    context: typer.Context,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of workers.")],
    as_json: Json = False,
) -> None:
    """Let workers take no more jobs, finish those that they have, and stop."""
    with connect(context) as client:
        of_each(
            ids,
            lambda worker: client.post(path("workers", worker, "drain")),
            lambda _, found: f"{found['id']}  {found['state']}, {count(found['running'])} jobs left",
            as_json=as_json,
        )
