"""Headrace: PostgreSQL, Valkey, one API process and the requested workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from redis import Redis
from sqlalchemy import text

from benchmarks.processes import Processes, answers, free_port
from benchmarks.systems.system import System
from launcher.children import Child
from launcher.embedded import Postgres, Valkey, start_postgres, start_valkey
from shared.postgres.engine import connect
from shared.redis import keys as redis_keys

# The engine may take minutes to load.
WORKER_START_S = 900.0


@dataclass(frozen=True, slots=True)
class Headrace(System):
    """A running Headrace."""

    database_url: str = ""
    redis_url: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def models_file(self) -> Path:
        """The file with its models and routes."""
        return Path(self.settings["HEADRACE_MODELS"])

    def environment(self) -> dict[str, str]:
        """Return the environment for another Headrace process."""
        return {**os.environ, **self.settings}

    def sql(self, *statements: str) -> None:
        """Run SQL statements directly on the database."""
        asyncio.run(self._sql(statements))

    async def _sql(self, statements: Sequence[str]) -> None:
        engine = connect(self.database_url, pool_size=1)
        try:
            for statement in statements:
                async with engine.connect() as connection:
                    await connection.execution_options(isolation_level="AUTOCOMMIT")
                    await connection.execute(text(statement))
        finally:
            await engine.dispose()

    def delete_jobs(self) -> None:
        """Delete all jobs from PostgreSQL and Redis, so that every run starts from the same state."""
        self.sql(
            "TRUNCATE jobs, responses, idempotency_keys, usage_events, usage_sums, budget_reservations", "CHECKPOINT"
        )
        with Redis.from_url(self.redis_url) as redis:
            for pattern in ("headrace*", redis_keys.log("*"), redis_keys.fence("*")):
                if keys := list(redis.scan_iter(pattern, count=1000)):
                    redis.delete(*keys)


@contextlib.contextmanager
def headrace(
    folder: Path,
    models: Sequence[Mapping[str, Any]],
    workers: Sequence[str] = (),
    *,
    routes: Sequence[Mapping[str, Any]] = (),
    name: str = "headrace",
    delay_ms: float = 0.0,
    **settings: object,
) -> Iterator[Headrace]:
    """Start Headrace with a worker for each model in `workers`; jobs of other models stay queued.

    `delay_ms`: its processes reach PostgreSQL and Redis through a proxy that delays both directions by this.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        postgres = start_postgres(folder / "postgres")
        stack.callback(postgres.stop)
        valkey = start_valkey(folder / "valkey")
        stack.callback(valkey.stop)
        models_file = folder / "models.yaml"
        models_file.write_text(json.dumps({"models": list(models), "routes": list(routes)}))  # JSON is valid YAML
        key = f"hr_bench_{secrets.token_hex(16)}"
        port = free_port()
        processes = stack.enter_context(Processes(folder))
        processes.track("postgres", postgres.pid)
        processes.track("valkey", valkey.pid)
        database_url, redis_url = postgres.url, valkey.url
        if delay_ms:
            database_url, redis_url = _delayed(processes, postgres, valkey, delay_ms)
        environment = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "HEADRACE_MODELS": str(models_file),
            "HEADRACE_PORT": str(port),
            "HEADRACE_DRAIN_S": "1",
            "HEADRACE_STOP_GRACE_S": "1",
            # One project sends the load of many; its jobs are still counted.
            "HEADRACE_PROJECT_QUEUED_JOBS": "1000000",
            "HEADRACE_PROJECT_URGENT_JOBS": "1000000",
            **{setting: str(value) for setting, value in settings.items()},
        }
        _run_module(processes, "migrate", ["migrations", "upgrade"], environment)
        _run_module(
            processes,
            "key",
            ["api.keys", "ensure", "bench", "--scope", "inference", "--scope", "admin"],
            environment | {"HEADRACE_API_KEY": key},
        )
        api = processes.start("api", [sys.executable, "-m", "api"], environment)
        started = [
            processes.start(f"worker-{model}", [sys.executable, "-m", "workers", model], environment)
            for model in workers
        ]
        processes.wait(api, lambda: answers(f"http://127.0.0.1:{port}/healthz"))
        for worker in started:
            processes.wait(worker, partial(_serves, worker), WORKER_START_S)
        yield Headrace(
            name=name,
            port=port,
            processes=processes,
            headers={"Authorization": f"Bearer {key}"},
            database_url=postgres.url,
            redis_url=valkey.url,
            settings=environment,
        )


def _delayed(processes: Processes, postgres: Postgres, valkey: Valkey, delay_ms: float) -> tuple[str, str]:
    """Start a proxy in front of both servers. Returns the URLs of PostgreSQL and Redis through it."""
    to = [*("--to", str(postgres.socket)), *("--to", str(valkey.port))]
    command = [sys.executable, "-m", "benchmarks.delay_proxy", "--delay-ms", str(delay_ms), *to]
    proxy = processes.start("delay-proxy", command)
    processes.wait(proxy, lambda: "ready at " in proxy.last_lines(1))
    *_, postgres_port, valkey_port = proxy.last_lines(1).split()
    return (
        f"postgresql+asyncpg://postgres@127.0.0.1:{postgres_port}/postgres?sslmode=disable",
        f"redis://127.0.0.1:{valkey_port}/0",
    )


def _serves(worker: Child) -> bool:
    return " ready." in worker.last_lines(10**6)


def _run_module(processes: Processes, name: str, arguments: list[str], environment: Mapping[str, str]) -> None:
    """Run `python -m ...` to completion."""
    child = processes.start(name, [sys.executable, "-m", *arguments], environment)
    processes.wait(child, lambda: child.process is None or child.process.poll() is not None)
    assert child.process is not None
    if child.process.returncode != 0:
        raise subprocess.CalledProcessError(child.process.returncode, [name], child.last_lines(30))
