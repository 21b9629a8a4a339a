"""Compares an answer that is generated again with what was emitted before the interruption.

If the tokens are not the whole state of a request (a grammar's state, the random numbers of a seed, penalties over the
output), they cannot be prefilled. The answer is generated again from its start and is the same as far as the engine is
deterministic; a difference is detected here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from shared.domain.events import Delta, merge_deltas


class Regeneration:
    """The emitted tokens of one choice that are still to be matched, and the deltas generated again."""

    def __init__(self, index: int, tokens: Iterable[int], *, finished: bool) -> None:
        """`tokens`: the emitted tokens; `finished`: whether the finish reason was emitted too."""
        self._index = index
        self._expected = deque(tokens)
        self._finished = finished
        self._deltas: list[Delta] = []
        self.done = not self._expected and not finished
        self.diverged = False

    def was_emitted(self, delta: Delta) -> bool:
        """Match the next delta, which has one token, and keep it. False once everything emitted was matched."""
        self._deltas.append(delta)
        if self.done:
            return False
        if not self._expected or (self._expected.popleft(),) != delta.token_ids:
            self.diverged = True
        elif delta.finish_reason is not None:
            self.done = self._finished and not self._expected
            self.diverged = not self.done
        elif not self._expected:
            self.done = not self._finished
        return True

    def output(self) -> Delta:
        """All deltas generated again, as one."""
        return merge_deltas([Delta(self._index), *self._deltas])
