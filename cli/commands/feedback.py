"""`headrace feedback`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from cli.client import path
from cli.options import Json, connect
from cli.output import print_json, say
from cli.text import one_line


class Rating(StrEnum):
    """Thumbs."""

    UP = "up"
    DOWN = "down"


def feedback(
    context: typer.Context,
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="The id of the job that gave the answer.")],
    rating: Annotated[Rating, typer.Argument(metavar="up|down", help="Whether the answer is good.")],
    comment: Annotated[str | None, typer.Option(metavar="TEXT", help="Why.")] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Such as: wrong. Repeatable.")] = None,
    user: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose rating it is; by default the end user of the request.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Rate the answer of a job, or change the rating."""
    others: dict[str, Any] = {"comment": comment, "tags": tag, "user": user}
    body = {"rating": rating.value, **{name: value for name, value in others.items() if value}}
    with connect(context) as client:
        given = client.post(path("jobs", job_id, "feedback"), json=body)
    if as_json:
        print_json(given)
        return
    by = f" by {one_line(given['user'])}" if given["user"] else ""
    say(f"{given['job_id']}: rated {given['value']}{by}")
