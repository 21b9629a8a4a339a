"""How an interrupted request resumes on the next worker. Each engine decides it: `resume_mode` in its `engine.py`."""

from __future__ import annotations

from enum import IntEnum


class Resume(IntEnum):
    """How an interrupted request can be resumed; higher is cheaper.

    `NONE`: not at all, it starts again. `REGENERATE`: from the start, comparing each token with the emitted ones.
    `EXACT`: after the last emitted token.
    """

    NONE = 0
    REGENERATE = 1
    EXACT = 2
