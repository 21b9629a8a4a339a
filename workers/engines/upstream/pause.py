"""The pauses that an upstream's own rate limits impose."""

from __future__ import annotations

import random
import time

# The longest pause: a rate limit that the upstream reports may concern only some of the jobs.
LONGEST_S = 60.0
# The first and the longest pause for a rate limit whose end the upstream does not name.
UNNAMED_S = (0.5, 30.0)


class Pause:
    """Until when no job should start. `left_s` may be read from any thread."""

    def __init__(self) -> None:
        self._until = 0.0
        # Pauses in a row for limits whose end was not named.
        self._unnamed = 0

    @property
    def left_s(self) -> float:
        """Seconds until its end; 0 if there is none."""
        return max(0.0, self._until - time.monotonic())

    def limited(self, named_s: float | None) -> None:
        """Pause for a rate limit, which ends after `named_s` if the upstream said so.

        Otherwise each pause is twice as long as the one before, until the upstream answers.
        """
        if named_s is None:
            if self.left_s:
                return  # the answers to requests that were sent before the pause
            first, longest = UNNAMED_S
            named_s = min(longest, first * 2.0 ** min(self._unnamed, 16)) * random.uniform(0.75, 1)
            self._unnamed += 1
        self._until = max(self._until, time.monotonic() + min(named_s, LONGEST_S))

    def answered(self) -> None:
        """Record that the upstream has answered: the next limit without an end is the first one."""
        self._unnamed = 0
