"""Commands that run on the machine of the installation: `headrace up` and `headrace bench`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from cli.errors import CliError
from launcher.settings import REPOSITORY


def up(
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", envvar="ENGINE", help="cpu, gpu or simulated; without it: cpu.", show_default=False
        ),
    ] = None,
) -> None:
    """Install what is missing and start everything on this machine; stop it with Ctrl-C. The same as `make up`."""
    if engine:
        os.environ["ENGINE"] = engine
    _require_clone("up")
    _exec("/bin/sh", "launcher/bootstrap.sh", "-m", "launcher")


def bench(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGUMENTS]", help="Those of `python -m benchmarks`.")
    ] = None,
) -> None:
    """Run benchmarks and compare to the goals, such as `headrace bench --only relay --quick`.

    `headrace bench -- --help` shows the arguments of the benchmarks.
    """
    _require_clone("bench")
    _exec(sys.executable, "-m", "benchmarks", *(arguments or []))


def _require_clone(command: str) -> None:
    """Fail in an image, which has no more of the repository than its processes need."""
    if not (REPOSITORY / "Makefile").exists():
        raise CliError(f"`headrace {command}` runs in a clone of Headrace's repository only.")


def _exec(program: str, *arguments: str) -> None:
    """Replace this process, so that signals and the exit code are those of the program."""
    sys.stdout.flush()
    try:
        os.chdir(REPOSITORY)
        os.execv(program, [program, *arguments])
    except OSError as error:
        raise CliError(f"{program} cannot be run: {error.strerror}.") from None
