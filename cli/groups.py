"""The command groups: errors of all commands end here, and `headrace models` means `headrace models list`."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from cli.errors import CliError, ExitCode
from cli.output import note, prepare_streams

# In the order of `headrace --help`.
COMMANDS = (
    "up", "status", "submit", "jobs", "job", "cancel", "feedback", "batch", "batches", "failed", "models", "workers",
    "requests", "export", "usage", "projects", "keys", "budgets", "limits", "webhooks", "prices", "evals", "audit",
    "redact", "erase", "bench",
)  # fmt: skip


class RootGroup(TyperGroup):
    """Turns errors into a line on stderr and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=COMMANDS.index)

    def invoke(self, ctx: Any) -> Any:
        prepare_streams()
        try:
            return self._report_errors(ctx)
        except BrokenPipeError:
            # Otherwise the interpreter would fail to flush them at its exit.
            for stream in (sys.stdout, sys.stderr):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            raise typer.Exit(ExitCode.CLOSED_PIPE) from None

    def _report_errors(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")  # typer validates with pydantic
            raise
        except CliError as error:
            note(f"Error: {error}", style="red")
            if error.hint:
                note(error.hint)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            note("Interrupted.")
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        return result


class ListGroup(TyperGroup):
    """A group with a command that runs if none is given: `list`, unless a subclass names another."""

    default = "list"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        asks_for_help = args[:1] in (["--help"], ["-h"])
        if not asks_for_help and (not args or args[0].startswith("-")):
            args = [self.default, *args]
        return super().parse_args(ctx, args)
