"""`headrace export`: the request log as a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.client import Client, path
from cli.commands.jobs import moment
from cli.commands.requests import (
    Batch,
    Conversation,
    EndedSince,
    EndedUntil,
    ErrorCode,
    Feedback,
    IsRefused,
    MaxScore,
    MinScore,
    Project,
    Route,
    Rubric,
    Status,
    User,
    conditions,
)
from cli.errors import CliError, ConnectionLost, UsageError
from cli.options import ModelThatRan, Quiet, connect
from cli.output import note, say
from cli.progress import Spinner
from cli.text import count, one_line, size

STDOUT = Path("-")
PARQUET_MAGIC = b"PAR1"
# A search that finds little sends nothing for a while.
TIMEOUT_S = 300.0


class Format(StrEnum):
    """The format of the file."""

    JSONL = "jsonl"
    PARQUET = "parquet"


class Level(StrEnum):
    """How much of the bodies is exported."""

    REDACTED = "redacted"
    FULL = "full"


def export(
    context: typer.Context,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PATH", help="Where to save it; `-` is stdout, and the default."),
    ] = None,
    file_format: Annotated[Format, typer.Option("--format", metavar="FORMAT", help="jsonl or parquet.")] = Format.JSONL,
    level: Annotated[
        Level, typer.Option(metavar="LEVEL", help="redacted, or full: what is kept in full is not redacted.")
    ] = Level.REDACTED,
    sample: Annotated[
        str | None, typer.Option(metavar="N|SHARE", help="Only a random part: 500 requests, or 0.05 of all.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Another seed draws another sample.")] = 0,
    status: Status = None,
    model: ModelThatRan = None,
    route: Route = None,
    since: EndedSince = None,
    until: EndedUntil = None,
    project: Project = None,
    user: User = None,
    conversation: Conversation = None,
    error_code: ErrorCode = None,
    refused: IsRefused = None,
    feedback: Feedback = None,
    rubric: Rubric = None,
    min_score: MinScore = None,
    max_score: MaxScore = None,
    batch: Batch = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    quiet: Quiet = False,
) -> None:
    """Export what was asked and answered as a set for evaluations: a line for each request, or Parquet.

    Only requests whose bodies are kept are exported. A file appears when it is complete; an export that was interrupted
    has to be started again, and with the same conditions and seed it draws the same sample.
    """
    if output is not None and output != STDOUT and output.exists() and not force:
        raise UsageError(f"{one_line(output)} exists: add --force to replace it.")
    if file_format is Format.PARQUET and (output is None or output == STDOUT) and sys.stdout.isatty():
        raise UsageError("Parquet cannot be shown on a terminal: add --output PATH.")
    params = conditions(
        format=file_format.value,
        level=level.value,
        sample=sample,
        seed=seed if sample is not None else None,
        status=status,
        model=model,
        route=route,
        start=moment(since, "--since"),
        end=moment(until, "--until"),
        project=project,
        user=user,
        conversation=conversation,
        error_code=error_code,
        refused=refused,
        feedback=feedback,
        rubric=rubric,
        min_score=min_score,
        max_score=max_score,
        batch=batch,
    )
    checked = _Lines() if file_format is Format.JSONL else _Parquet()
    with connect(context) as client, Spinner(shown=not quiet) as progress:
        if output is None or output == STDOUT:
            for chunk in _chunks(client, params, checked, progress):
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        else:
            _save(output, _chunks(client, params, checked, progress))
    if not quiet:
        note(f"Exported {checked.text}, level {level.value}.", style="dim")
    if output is not None and output != STDOUT:
        say(str(output))


def _chunks(client: Client, params: dict[str, Any], checked: _Lines | _Parquet, progress: Spinner) -> Iterator[bytes]:
    """The parts of the file; raises `ConnectionLost` if it ends before it is complete."""
    progress.show("searching")
    for _, chunk in client.download(path("requests", "export"), params=params, timeout_s=TIMEOUT_S):
        checked.add(chunk)
        progress.show(f"exporting: {checked.text}")
        yield chunk
    if not checked.is_complete:
        raise ConnectionLost("The export ended before it was complete.", "Start it again.")


def _save(file: Path, chunks: Iterator[bytes]) -> None:
    """Save a file. One that was not received completely does not replace another."""
    part = file.with_name(f".{file.name}.part")
    try:
        with part.open("wb") as target:
            for chunk in chunks:
                target.write(chunk)
        part.replace(file)
    except OSError as error:
        raise CliError(f"{one_line(file)} cannot be written: {error.strerror}.") from None
    finally:
        part.unlink(missing_ok=True)


class _Lines:
    """Counts the lines of a file. Its last line has their number."""

    def __init__(self) -> None:
        self._bytes = self._lines = 0
        self._last = bytearray()

    def add(self, chunk: bytes) -> None:
        self._bytes += len(chunk)
        self._lines += chunk.count(b"\n")
        ended = chunk.rfind(b"\n", 0, -1) + 1
        if ended or self._last.endswith(b"\n"):
            self._last = bytearray(chunk[ended:])
        else:
            self._last += chunk

    @property
    def text(self) -> str:
        return f"{count(self._lines)} {'request' if self._lines == 1 else 'requests'}, {size(self._bytes)}"

    @property
    def is_complete(self) -> bool:
        if not self._bytes:
            return True
        try:
            rows = json.loads(self._last)["metadata"]["headrace"]["rows"]
        except (ValueError, KeyError, TypeError):
            return False
        return bool(rows == self._lines)


class _Parquet:
    """Recognizes the end of a Parquet file."""

    def __init__(self) -> None:
        self._bytes = 0
        self._end = b""

    def add(self, chunk: bytes) -> None:
        self._bytes += len(chunk)
        self._end = (self._end + chunk)[-len(PARQUET_MAGIC) :]

    @property
    def text(self) -> str:
        return size(self._bytes)

    @property
    def is_complete(self) -> bool:
        return self._end == PARQUET_MAGIC
