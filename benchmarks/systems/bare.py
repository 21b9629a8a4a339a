"""The bare routes (`benchmarks.bare`) in one process, with their own PostgreSQL."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.processes import Processes, answers, free_port
from benchmarks.systems.system import System
from launcher.embedded import start_postgres


@contextlib.contextmanager
def bare(folder: Path, name: str, upstream: str = "") -> Iterator[System]:
    """Start the routes; those of chats relay to the API at the URL `upstream`."""
    folder.mkdir(parents=True, exist_ok=True)
    postgres = start_postgres(folder / "postgres")
    port = free_port()
    environment = {
        "BARE_DATABASE_URL": postgres.url.replace("postgresql+asyncpg:", "postgresql:"),
        "BARE_UPSTREAM": upstream,
    }
    command = [
        *(sys.executable, "-m", "uvicorn", "benchmarks.bare.api:app", "--port", str(port)),
        *("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"),
    ]
    try:
        with Processes(folder) as processes:
            processes.track("postgres", postgres.pid)
            route = processes.start("route", command, environment)
            processes.wait(route, lambda: answers(f"http://127.0.0.1:{port}/health"))
            yield System(name=name, port=port, processes=processes)
    finally:
        postgres.stop()
