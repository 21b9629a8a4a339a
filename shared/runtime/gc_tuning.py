"""Settings of the garbage collector."""

from __future__ import annotations

import gc

# Thresholds for `gc.set_threshold`, above Python's defaults of (700, 10, 10): fewer, less disruptive collections.
THRESHOLDS = (20_000, 20, 50)


def freeze_gc() -> None:
    """Exempt all existing objects from garbage collection. Call this once everything is loaded.

    Collections that traverse the modules of a large program stop the event loop for tens of milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
