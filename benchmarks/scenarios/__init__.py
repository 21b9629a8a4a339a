"""The scenarios by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.bench import Bench
from benchmarks.scenarios import followers, growth, relay, submits

SCENARIOS: dict[str, Callable[[Bench], None]] = {
    "relay": relay.run,
    "submits": submits.run,
    "followers": followers.run,
    "growth": growth.run,
}
