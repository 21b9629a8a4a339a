"""Errors that end a stream early."""

from __future__ import annotations

from collections.abc import Sequence

from shared.domain.errors import HeadraceError
from shared.domain.job import Job


class StreamAborted(HeadraceError):
    """A stream has sent an error frame and stopped although the `unfinished` jobs have not ended."""

    def __init__(self, unfinished: Sequence[Job]) -> None:
        super().__init__()
        self.unfinished = unfinished


class CannotRestart(HeadraceError):
    """The job was restarted after text had been sent; this kind of stream cannot retract text."""
