"""How long a step of an event loop may take in tests."""

from __future__ import annotations

from tests.support.examples import LONG

# The longest step that a test accepts, in milliseconds. CPU time depends on what else the machine runs, and was seen to
# double, so `make test` finds only what blocks a loop for long; `make test-long` checks the limit itself.
MAX_STEP_MS = 20 if LONG else 100
