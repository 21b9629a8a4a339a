"""Options that several commands have, and lists, which all have the same."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from cli.client import Client
from cli.errors import CliError, ExitCode, UsageError
from cli.output import Column, note, print_json, print_table
from cli.target import find_target
from cli.text import one_line

Json = Annotated[
    bool, typer.Option("--json", help="Print JSON and nothing else: one object, or a line for each item of a list.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and statistics on stderr.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="The number of items to show.")]
All = Annotated[bool, typer.Option("--all", help="Show all items.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do so without a question.")]
After = Annotated[str | None, typer.Option("--after", metavar="ID", help="Show what follows this item.")]


def seconds_of(text: str, option: str) -> float:
    """The seconds of a duration such as `90s`, `5m`, `24h` or `7d`."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)(s|m|h|d)", text)
    if match is None:
        raise UsageError(f"{option} must be a duration such as 90s, 5m, 24h or 7d, got {one_line(text)!r}.")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def ask(question: str) -> None:
    """Ask on the terminal whether to go on, and exit if the answer is not yes.

    Raises:
        UsageError: there is no terminal, so that `--yes` is needed.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError("There is no terminal for a question: add --yes.")
    note(f"{question} [y/N]")  # not by typer.confirm, which writes to stdout too, and hides Ctrl-C
    try:
        answer = input().strip().lower()
    except EOFError:
        answer = ""
    if answer not in ("y", "yes"):
        note("Nothing was done.")
        raise typer.Exit(ExitCode.FAILED)


def show_list(
    client: Client,
    path: str,
    params: dict[str, Any],
    limit: int | None,
    columns: Sequence[Column],
    row: Callable[[dict[str, Any]], list[object]],
    *,
    as_json: bool,
    empty: str,
) -> None:
    """Print a list of the API, up to `limit` items (None: all), and on stderr how to see more. `empty`: without any."""
    found = client.pages(path, limit=limit, params=params)
    if as_json:
        for item in found:
            print_json(item)
    else:
        print_table(columns, [row(item) for item in found], empty=empty)
    if client.more_after is not None:
        seen = "The search was stopped early" if client.partial else "There are more"
        note(f"{seen}: add --after {client.more_after}, or --all.", style="dim")


def connect(context: typer.Context) -> Client:
    """A client of the installation that the command line or the environment names."""
    return Client(find_target(context.obj))


def complete_models(context: typer.Context, incomplete: str) -> list[str]:
    """The models that begin with a text, for shell completion; none if they cannot be read soon."""
    try:
        with Client(find_target(context.find_root().params.get("url")), timeout_s=1.0) as client:
            names = [model["id"] for model in client.get("/v1/models")["data"]]
    except CliError:
        return []
    return [name for name in names if name.startswith(incomplete)]


ModelThatRan = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="NAME", autocompletion=complete_models, help="The model that ran."),
]
Since = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", help="Submitted since: a duration ago (90s, 2h, 7d), or a timestamp."),
]
