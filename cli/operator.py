"""The key of commands that need the `admin` scope, on the machine of the installation; and its local store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import typer

from cli.client import Client
from cli.errors import CliError, Refused
from cli.output import note
from cli.target import Target, find_target
from cli.text import one_line
from launcher.home import read_environment, write_private
from launcher.settings import REPOSITORY, home_folder

NAME = "headrace-cli"


def connect_operator(context: typer.Context, *, create: bool = True) -> Client:
    """A client for commands of operators.

    On the machine of the installation, unless HEADRACE_API_KEY is set, it has a key of its own, because that of
    `make up` has no `admin` scope: whoever can read HEADRACE_HOME may do everything anyway. The key is created at its
    first use and stored there; with `create` off, the usual key is used until then.
    """
    target = find_target(context.obj)
    if not target.local or os.environ.get("HEADRACE_API_KEY"):
        return Client(target)
    file = home_folder() / "operator_key"
    if file.exists() and (client := _valid(target, file)) is not None:
        return client
    if not create:
        return Client(target)
    scopes = ("--scope", "admin", "--scope", "inference")
    key = run_in_store("api.keys", "create", NAME, "--project", "default", *scopes).strip()
    write_private(file, f"{key}\n")
    note(f"Created a key with the admin scope for this command line, {NAME}, in {file}.", style="dim")
    return Client(Target(target.url, key, local=True))


def _valid(target: Target, file: Path) -> Client | None:
    """A client with the stored key; None if it was revoked, or the database is another one."""
    try:
        client = Client(Target(target.url, file.read_text().strip(), local=True))
    except OSError:
        return None
    try:
        client.get("/v1/projects", params={"limit": 1})
    except CliError as error:
        client.close()
        if isinstance(error, Refused):
            return None
        raise
    return client


def run_in_store(module: str, *arguments: str) -> str:
    """Run `python -m MODULE` on the database of the installation on this machine. Returns its output."""
    home = home_folder()
    try:
        environment = os.environ | read_environment(home / "env")
    except OSError:
        raise CliError(
            f"Headrace is not running in {home}.", "This command runs on the machine of the installation."
        ) from None
    command = [sys.executable, "-m", module, *arguments]
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or [f"python -m {module} failed"]
        raise CliError(one_line(lines[-1]))
    return ended.stdout
