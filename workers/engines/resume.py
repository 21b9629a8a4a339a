"""How an interrupted request resumes on the next worker. Each engine decides it: `resume_mode` in its `engine.py`."""

from __future__ import annotations

from enum import IntEnum


class Resume(IntEnum):
    """How an interrupted request can be resumed; higher is cheaper.

    `NONE`: not at all; it starts again if no reader has seen its output, otherwise its job fails. `RESTART`: it starts
    again, and readers discard what they have. `REGENERATE`: from the start, comparing each token with the emitted ones.
    `EXACT`: after the last emitted token.
    """

    NONE = 0
    RESTART = 1
    REGENERATE = 2
    EXACT = 3
