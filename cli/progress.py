"""A line of progress on stderr, which is shown on a terminal only."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

from cli.output import console, note
from cli.text import one_line

if TYPE_CHECKING:
    from rich.status import Status


class Spinner:
    """Says what a command waits for."""

    def __init__(self, *, shown: bool = True) -> None:
        self._shown = shown
        self._live = shown and sys.stderr.isatty()
        self._status: Status | None = None
        self._last = ""

    def show(self, text: str) -> None:
        """Show a text until the next one; without a terminal, nothing."""
        if not self._live:
            return
        from rich.text import Text

        line = Text(one_line(text))
        if self._status is None:
            self._status = console(stderr=True).status(line)
            self._status.start()
        else:
            self._status.update(line)

    def report(self, text: str, detail: str | None = None, *, new_line: bool = False) -> None:
        """Show a text that also matters without a terminal, where it is printed unless it repeats the last one.

        `new_line`: the cursor is at the end of a line that must stay.
        """
        if self._live:
            self.show(detail or text)
        elif self._shown and text != self._last:
            if new_line:
                note("")
            note(text, style="dim")
        self._last = text

    def end(self) -> None:
        """Remove the line for good, because the terminal shows other text from now on; reports are printed."""
        self.stop()
        self._live = False

    def stop(self) -> None:
        """Remove the line."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
