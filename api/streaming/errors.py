"""Errors that end a stream early."""

from __future__ import annotations

from collections.abc import Sequence

from shared.domain.errors import HeadraceError
from shared.domain.job import Job


class CutShort(HeadraceError):
    """A stream has told its reader that it cannot go on, and some of its jobs have not ended: those that are `left`."""

    def __init__(self, left: Sequence[Job]) -> None:
        super().__init__()
        self.left = left


class CannotRestart(HeadraceError):
    """The job was started again after text had been sent; this kind of stream cannot take text back."""
