"""The simulated OpenAI-compatible server (`benchmarks.upstream`), used directly or behind a gateway."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Processes, free_port
from benchmarks.systems.system import System


@dataclass(frozen=True, slots=True)
class Upstream(System):
    """A running simulated upstream."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@contextlib.contextmanager
def upstream(folder: Path, *, ttft_ms: float, itl_ms: float) -> Iterator[Upstream]:
    """Start an upstream with this timing; 0 is as fast as possible."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [
        *(sys.executable, "-m", "benchmarks.upstream", "--port", str(port)),
        *("--ttft-ms", str(ttft_ms), "--itl-ms", str(itl_ms)),
    ]
    with Processes(folder) as processes:
        server = processes.start("upstream", command)
        processes.wait(server, lambda: " ready at " in server.last_lines(10))
        yield Upstream(name="upstream", port=port, processes=processes)
