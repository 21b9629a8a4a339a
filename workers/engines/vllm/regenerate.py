"""An answer that is made once more from its beginning, and told from where it broke off.

Where more than the tokens counts (a grammar's state, the random numbers of a seed, penalties over the output), they
cannot be prefilled and gone on with. Made again they come out the same, as far as the engine is deterministic;
where they do not, somebody has to say so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from shared.domain.events import Delta


class Regeneration:
    """One choice's: what was told of it, and what is made again."""

    def __init__(self, index: int, told: Iterable[int], *, finished: bool) -> None:
        """`told`: the tokens; `finished`: whether its end was told, too."""
        self._index = index
        self._told = deque(told)
        self._finished = finished
        self._again: list[Delta] = []
        self.done = not self._told and not finished
        self.diverged = False

    def told(self, delta: Delta) -> bool:
        """Whether this next delta, of one token, was told before; it is kept."""
        self._again.append(delta)
        if self.done:
            return False
        if not self._told or (self._told.popleft(),) != delta.token_ids:
            self.diverged = True
        elif delta.finish_reason is not None:
            self.done = self._finished and not self._told
            self.diverged = not self.done
        elif not self._told:
            self.done = not self._finished
        return True

    def whole(self) -> Delta:
        """All that was made again."""
        whole = Delta(self._index)
        for delta in self._again:
            whole = whole.merged(delta)
        return whole
