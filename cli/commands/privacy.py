"""`headrace redact` and `headrace erase`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.client import path
from cli.errors import CliError, UsageError
from cli.options import Json, Yes, ask, connect
from cli.output import note, print_json, say, write_text


def redact(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A text file, or - for standard input.")] = "-",
    project: Annotated[str | None, typer.Option(metavar="NAME", help="By the rules of this project.")] = None,
    rules: Annotated[Path | None, typer.Option(metavar="FILE", help="By the rules in this JSON file.")] = None,
    as_json: Json = False,
) -> None:
    """Show what redaction would leave of a text. Nothing is stored."""
    if project is not None and rules is not None:
        raise UsageError("Give --project or --rules, not both.")
    body: dict[str, Any] = {"text": _read(file)}
    if project is not None:
        body["project"] = project
    if rules is not None:
        body["rules"] = read_rules(str(rules))
    with connect(context) as client:
        redacted = client.post("/v1/admin/redaction/preview", json=body)
    if as_json:
        print_json(redacted)
        return
    write_text(redacted["text"] if redacted["text"].endswith("\n") else f"{redacted['text']}\n")
    note(", ".join(f"{name}: {count}" for name, count in redacted["counts"].items()) or "Nothing was found.")


def erase(
    context: typer.Context,
    user: Annotated[str, typer.Argument(metavar="USER", help="The end user, as requests name them.")],
    project: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of this project; by default that of the key.")
    ] = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Erase what is stored of an end user: jobs, answers, logs, files, and the name in what remains."""
    if not yes:
        ask(f"Erase all data of the end user {user!r}? It cannot be undone.")
    erased: Counter[str] = Counter()
    params = {} if project is None else {"project": project}
    with connect(context) as client:
        while True:
            result = client.request("DELETE", path("users", user, "data"), params=params)
            erased.update(result["erased"])
            # Without a change, only batches that have not ended are left.
            if result["complete"] or not result["erased"]:
                break
    result["erased"] = dict(erased)
    if as_json:
        print_json(result)
    else:
        say(", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in erased.items()) or "There was nothing.")
        for export in result["exports"]:
            note(f"{export['id']} of {export['created_at']} may have data of the user: delete its files.")
        for name in result["named_in"]:
            note(f"{name} was created for the user, and remains.")
    if not result["complete"]:
        batches = ", ".join(result["unended_batches"])
        raise CliError(
            f"Something is left{f': {batches}' if batches else ''}.", "Repeat the command when the batches have ended."
        )


def read_rules(file: str) -> dict[str, Any]:
    """The rules of redaction in a JSON file; `-` is standard input. The server checks them."""
    try:
        rules = json.loads(_read(file))
    except ValueError as error:
        raise UsageError(f"{file} is not JSON: {error}") from None
    if not isinstance(rules, dict):
        raise UsageError(f'{file} must be a JSON object, such as {{"phone_regions": ["DE"]}}.')
    return rules


def _read(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Cannot read {file}: {error}") from None
