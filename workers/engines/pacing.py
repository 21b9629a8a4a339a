"""The minimum interval between flushes."""

from __future__ import annotations

# From one flush of everything to the next: so much for each log that was in the last one, and no more than that.
# Nobody reads a text that comes in 50 pieces a second as less smooth than one that comes in 200; it costs a quarter.
INTERVAL_PER_LOG_S = 0.002
MAX_INTERVAL_S = 0.02


def flush_interval_s(logs: int) -> float:
    """Seconds from one flush to the next while so many logs grow: text that is there sooner waits."""
    return min(INTERVAL_PER_LOG_S * logs, MAX_INTERVAL_S)
