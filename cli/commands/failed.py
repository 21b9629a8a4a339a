"""`headrace failed`: jobs that failed, to be replayed or discarded."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.client import path
from cli.commands.jobs import moment, of_each
from cli.groups import ListGroup
from cli.options import After, All, Json, Limit, ModelThatRan, Since, connect, show_list
from cli.output import Column
from cli.text import age, one_line

failed = typer.Typer(cls=ListGroup, help="List failed jobs, replay or discard them.", rich_markup_mode=None)

COLUMNS = (
    Column("JOB"),
    Column("MODEL", drop=2),
    Column("AGE", right=True, drop=3),
    Column("ATTEMPTS", right=True, drop=4),
    Column("ERROR"),
    Column("MESSAGE", drop=1),
)

Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of failed jobs.")]


@failed.command("list")
def list_failed(
    context: typer.Context,
    model: ModelThatRan = None,
    since: Since = None,
    limit: Limit = 20,
    after: After = None,
    everything: All = False,
    as_json: Json = False,
) -> None:
    """List failed jobs, newest first, with their errors."""
    filters = {"model": model, "created_after": moment(since, "--since"), "after": after}
    params: dict[str, Any] = {"status": "failed"} | {name: value for name, value in filters.items() if value}
    with connect(context) as client:
        shown = None if everything else limit
        show_list(client, "/v1/jobs", params, shown, COLUMNS, _row, as_json=as_json, empty="No job has failed.")


def _row(job: dict[str, Any]) -> list[object]:
    error = job["error"] or {}
    return [
        job["id"],
        job["model"],
        age(job["created_at"]),
        len(job["attempts"]),
        error.get("code", "-"),
        error.get("message", "-"),
    ]


@failed.command()
def replay(context: typer.Context, ids: Ids, as_json: Json = False) -> None:
    """Submit failed jobs again, as new jobs. The failed jobs stay as they are."""
    with connect(context) as client:
        of_each(
            ids,
            lambda job_id: client.request("POST", path("jobs", job_id, "replay")),
            lambda job_id, new: f"{job_id} replayed as {one_line(new['id'])}",
            as_json=as_json,
        )


@failed.command()
def discard(context: typer.Context, ids: Ids, as_json: Json = False) -> None:
    """Delete the inputs and outputs of failed jobs."""
    with connect(context) as client:
        of_each(
            ids,
            lambda job_id: client.request("DELETE", path("jobs", job_id)),
            lambda job_id, _: f"{job_id} discarded",
            as_json=as_json,
        )
