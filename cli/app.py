"""The command line: its commands, and the options before them."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.commands.admin import audit, prices
from cli.commands.batch import batch, batches
from cli.commands.budgets import budgets
from cli.commands.evals import evals
from cli.commands.export import export
from cli.commands.failed import failed
from cli.commands.feedback import feedback
from cli.commands.jobs import cancel, job, jobs
from cli.commands.keys import keys, projects
from cli.commands.limits import limits
from cli.commands.local import bench, up
from cli.commands.models import models
from cli.commands.requests import requests
from cli.commands.status import status
from cli.commands.submit import submit
from cli.commands.usage import usage
from cli.commands.workers import workers
from cli.groups import RootGroup
from cli.output import say

app = typer.Typer(
    name="headrace",
    cls=RootGroup,
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(asked: bool) -> None:
    if asked:
        from shared.domain.version import VERSION

        say(f"headrace {VERSION}")
        raise typer.Exit


@app.callback()
def headrace(
    context: typer.Context,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="HEADRACE_URL",
            help="The address of the API; without it, the running `make up` of this machine.",
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version of this command."),
    ] = False,
) -> None:
    """Headrace: queued, asynchronous LLM inference.

    Commands talk to the installation that runs on this machine, or to the one at HEADRACE_URL with the key in
    HEADRACE_API_KEY. `headrace COMMAND --help` describes a command; docs/cli.md lists the exit codes.
    """
    context.obj = url


app.command(short_help="Install what is missing and start everything here.")(up)
app.command(short_help="Show health, models, queues and first tokens, live.")(status)
app.command(short_help="Submit a prompt and show the answer as it comes.")(submit)
app.command(short_help="List jobs.")(jobs)
app.command(short_help="Show a job, or follow its answer.")(job)
app.command(short_help="Cancel jobs and batches.")(cancel)
app.command(short_help="Rate the answer of a job.")(feedback)
app.command(short_help="Run a file of requests and save the results.")(batch)
app.command(short_help="List batches.")(batches)
app.add_typer(failed, name="failed")
app.add_typer(models, name="models")
app.add_typer(workers, name="workers")
app.add_typer(requests, name="requests")
app.command(short_help="Export the request log as a file.")(export)
app.add_typer(usage, name="usage")
app.add_typer(projects, name="projects")
app.add_typer(keys, name="keys")
app.add_typer(budgets, name="budgets")
app.add_typer(limits, name="limits")
app.add_typer(evals, name="evals")
app.command(short_help="List the prices of models.")(prices)
app.command(short_help="List what operators have changed.")(audit)
app.command(context_settings={"ignore_unknown_options": True}, short_help="Run benchmarks.")(bench)


def main() -> None:
    """Run the command of this process's arguments, and exit."""
    app(prog_name="headrace")
