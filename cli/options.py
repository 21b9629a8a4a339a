"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.client import Client
from cli.target import find_target

Json = Annotated[
    bool, typer.Option("--json", help="Print JSON and nothing else: one object, or a line for each item of a list.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and statistics on stderr.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="The number of items to show.")]
All = Annotated[bool, typer.Option("--all", help="Show all items.")]
After = Annotated[str | None, typer.Option("--after", metavar="ID", help="Show what follows this item.")]


def connect(context: typer.Context) -> Client:
    """A client of the installation that the command line or the environment names."""
    return Client(find_target(context.obj))


def complete_models(context: typer.Context, incomplete: str) -> list[str]:
    """The models that begin with a text, for shell completion; none if they cannot be read soon."""
    from cli.errors import CliError

    try:
        with Client(find_target(context.find_root().params.get("url")), timeout_s=1.0) as client:
            names = [model["id"] for model in client.get("/v1/models")["data"]]
    except CliError:
        return []
    return [name for name in names if name.startswith(incomplete)]
