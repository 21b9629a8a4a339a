"""Output: tables and messages on a terminal, plain columns in a pipe, JSON lines with `--json`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from cli.text import one_line, to_json, without_controls

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

GAP = 2
STYLES = {
    "completed": "green", "incomplete": "green", "ready": "green", "ok": "green", "valid": "green",
    "failed": "red", "expired": "red", "unready": "red", "revoked": "red", "lost": "red",
    "cancelled": "yellow", "cancelling": "yellow", "draining": "yellow", "paused": "yellow", "loading": "yellow",
    "in_progress": "cyan", "queued": "blue", "validating": "blue", "finalizing": "cyan",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column of a table. On a terminal that is too narrow, those with the highest `drop` are left out first."""

    title: str
    right: bool = False
    drop: int = 0


def console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is: without markup, emoji codes and highlighting.

    If the reader of the stream has left, it raises `BrokenPipeError`; rich would exit with code 1.
    """
    from rich.console import Console

    class PlainConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return PlainConsole(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)


def prepare_streams() -> None:
    """Let stdout and stderr replace what their encoding lacks, such as unpaired surrogates of a model's answer.

    What is written to one that was closed is lost.
    """
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # not of a test's stream
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def print_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    sys.stdout.write(f"{to_json(value)}\n")
    sys.stdout.flush()


def write_text(text: str, stream: TextIO | None = None) -> None:
    """Write an answer as it comes. On a terminal, without control characters; in a pipe or a file, as it is."""
    stream = stream or sys.stdout
    stream.write(without_controls(text) if stream.isatty() else text)
    stream.flush()


def note(text: str, *, style: str | None = None) -> None:
    """Print a line on stderr."""
    console(stderr=True).print(one_line(text), style=style)


def say(text: str) -> None:
    """Print a line on stdout."""
    console().print(one_line(text))


def status_text(status: str) -> Text:
    """A status in its colour."""
    from rich.text import Text

    text = one_line(status)
    return Text(text, STYLES.get(text, ""))


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print a table; `empty` goes to stderr instead if there are no rows."""
    found = list(rows)
    if not found:
        note(empty)
        return
    out = console()
    for line in table_lines(columns, found, width=out.width if out.is_terminal else None):
        if out.is_terminal:
            out.print(line, overflow="ellipsis", no_wrap=True, crop=True, soft_wrap=False)
        else:
            out.print(line)


def table_lines(columns: Sequence[Column], rows: Sequence[Sequence[object]], *, width: int | None) -> Iterator[Text]:
    """The lines of a table that fits into `width` cells if its columns allow it; None: without a limit."""
    from rich.text import Text

    header = [Text(column.title, "bold") for column in columns]
    cells = [header, *[[cell if isinstance(cell, Text) else Text(one_line(cell)) for cell in row] for row in rows]]
    widths = [max(row[index].cell_len for row in cells) for index in range(len(columns))]
    shown = _fitting(columns, widths, width)
    for row in cells:
        line = Text()
        for index in shown:
            padding = " " * (widths[index] - row[index].cell_len)
            gap = " " * GAP if index != shown[-1] else ""
            parts = (padding, row[index], gap) if columns[index].right else (row[index], padding, gap)
            for part in parts:
                line.append(part) if isinstance(part, str) else line.append_text(part)
        line.rstrip()
        yield line


def _fitting(columns: Sequence[Column], widths: Sequence[int], width: int | None) -> list[int]:
    """The indexes of the columns that are shown."""
    shown = list(range(len(columns)))

    def total() -> int:
        return sum(widths[index] for index in shown) + GAP * (len(shown) - 1)

    while width is not None and total() > width:
        droppable = [index for index in shown if columns[index].drop]
        if not droppable:
            break
        shown.remove(max(droppable, key=lambda index: columns[index].drop))
    return shown


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print names and values in two columns; values of None are left out."""
    from rich.text import Text

    out = console()
    found = [(name, value) for name, value in fields if value is not None]
    width = max((len(name) for name, _ in found), default=0)
    for name, value in found:
        text = value if isinstance(value, Text) else Text(one_line(value))
        out.print(Text(f"{name:<{width}}  ", "dim").append_text(text))
