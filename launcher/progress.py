"""Terminal output: one line per phase, with its duration."""

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator
from typing import TextIO


class Phase:
    """A running phase; `note` shows what it is waiting for."""

    def __init__(self, name: str, progress: "Progress") -> None:
        self._name = name
        self._progress = progress
        self._begin = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin

    def note(self, text: str) -> None:
        self._progress.show(f"  {self._name:<12} {text}  {self.seconds:.0f} s")


class Progress:
    """Prints lines; on a terminal, the line of the current phase is updated in place."""

    def __init__(self, output: TextIO | None = None) -> None:
        self._output = output or sys.stdout
        self._live = self._output.isatty()

    @contextlib.contextmanager
    def phase(self, name: str, done: str = "ready") -> Iterator[Phase]:
        phase = Phase(name, self)
        phase.note("...")
        try:
            yield phase
        except BaseException:
            self._write("\r\033[K" if self._live else "")
            raise
        self.say(f"  {name:<12} {done} in {phase.seconds:.1f} s")

    def show(self, line: str) -> None:
        """Show a line that the next one overwrites; without a terminal, show nothing."""
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._write(f"\r\033[K{line[:width]}")

    def say(self, text: str) -> None:
        """Print text that is not overwritten."""
        self._write(f"\r\033[K{text}\n" if self._live else f"{text}\n")

    def _write(self, text: str) -> None:
        # The terminal may have been closed; the shutdown must still complete.
        with contextlib.suppress(OSError):
            self._output.write(text)
            self._output.flush()
