"""Notices an upstream that keeps a connection alive with pings but sends no output."""

from __future__ import annotations

import math
import time

from shared.config.models.upstream import StreamedOptions, UpstreamOptions


def stall_timeout_s(options: UpstreamOptions) -> float:
    """The time without output after which a response is given up; runs have limits of their own."""
    return options.stall_timeout_s if isinstance(options, StreamedOptions) else math.inf


class StallTimer:
    """Measures the time since the last output of one response."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._used_at = time.monotonic()

    def read(self, *, has_output: bool) -> None:
        """Note a read.

        Raises:
            TimeoutError: there was no output for too long.
        """
        now = time.monotonic()
        if has_output:
            self._used_at = now
        elif now - self._used_at > self._timeout_s:
            raise TimeoutError("only pings or other data without output")
