"""Exit codes, and the errors that end a command: one line on stderr, and a hint what to do."""

from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """The exit codes of all commands; docs/cli.md lists them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CANNOT_CONNECT = 3
    REFUSED = 4
    NOT_FOUND = 5
    UNAVAILABLE = 6
    INTERRUPTED = 130
    CLOSED_PIPE = 141


class CliError(Exception):
    """A command has failed. `hint` is a second line that says what to do."""

    exit_code = ExitCode.FAILED

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(CliError):
    """The command line or the request is invalid."""

    exit_code = ExitCode.USAGE


class CannotConnect(CliError):
    """The API cannot be reached."""

    exit_code = ExitCode.CANNOT_CONNECT


class ConnectionLost(CannotConnect):
    """The connection was lost, or the API does not answer on it. It may have received the request."""


class Refused(CliError):
    """The API key is missing, invalid or not sufficient: 401 or 403."""

    exit_code = ExitCode.REFUSED


class NotFound(CliError):
    """There is no such job, batch, model or endpoint."""

    exit_code = ExitCode.NOT_FOUND


class Unavailable(CliError):
    """The server is overloaded or has an error: 429 or 5xx. The same command may succeed later."""

    exit_code = ExitCode.UNAVAILABLE


class Members(dict[str, Any]):
    """An object of a response. A member that is missing means that another program has answered, or another version."""

    def __missing__(self, name: str) -> Any:
        raise Unavailable(f"The server's answer has no `{name}`; is it a Headrace API of this version?")
