"""Starting a process: settings and a database that are right, or a message that says what is wrong."""

from __future__ import annotations

import gc

# New objects that are not freed again, between two looks of the collector at the young, and young looks to an old one.
COLLECT = (20_000, 20, 50)


def freeze_gc() -> None:
    """Call when everything is loaded: what is there now stays, and the collector need not walk it ever again.

    Its walks over the modules of a large program stop the event loop for tens of milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT)
