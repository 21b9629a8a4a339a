"""Free ports."""

from __future__ import annotations

import itertools
import os
import random
import socket
from collections.abc import Iterator

# Below what Linux gives to outgoing connections (32768 and up), one of which could take a port before its server does.
FIRST, LAST = 20_000, 32_000
# Each process of a parallel run has a range of its own, so that two of them never choose one port.
SHARE = 2_000
_process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % ((LAST - FIRST) // SHARE)
_share = range(FIRST + _process * SHARE, FIRST + (_process + 1) * SHARE)
_offset = random.SystemRandom().randrange(SHARE)
_candidates: Iterator[int] = itertools.cycle([*_share[_offset:], *_share[:_offset]])


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, and that this process has not given for long."""
    for port in itertools.islice(_candidates, SHARE):
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue
    raise OSError(f"no port of {_share} is free")
