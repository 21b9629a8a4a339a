"""API and worker processes on real servers, for end-to-end tests."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.support.database import TEMPLATE, create_database, switch_database
from tests.support.forked import FORK, Forked, run_forked
from tests.support.ports import free_port
from tests.support.vllm_forks import FORK_WITH_VLLM
from tests.support.waiting import eventually_sync

KEY = "hr_e2etests_" + "0" * 43
Process = subprocess.Popen[bytes] | Forked
STACK_TEMPLATE = "headrace_stack_template"
REPOSITORY = Path(__file__).resolve().parents[2]


class Stack:
    """API and worker processes on a database created from `stack_template`. Their logs are in `folder`."""

    def __init__(self, database_url: str, redis_url: str, models: Path, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **os.environ,
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "HEADRACE_MODELS": str(models),
            "HEADRACE_PORT": str(self.port),
            "HEADRACE_API_KEY": KEY,
            "HEADRACE_FILES": str(folder / "files"),
            "HEADRACE_DRAIN_S": "1",
            "HEADRACE_METRICS_PORT": "0",
            "HEADRACE_METRICS_TARGETS": str(folder / "metrics"),
            "PYTHONUNBUFFERED": "1",
            **{name: str(value) for name, value in settings.items()},
        }
        self.processes: dict[str, Process] = {}
        self._workers_context = FORK_WITH_VLLM if '"engine": "vllm"' in models.read_text() else FORK
        self._models: dict[str, str] = {}
        self._count = 0

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `python -m ...` and wait until it exits."""
        return run_forked(*arguments, environment=self.environment, check=check)

    def start(self, name: str, *arguments: str, **settings: str) -> Process:
        """Start `python -m ...` as a process named `name`."""
        log, environment = self.folder / f"{name}.log", {**self.environment, **settings}
        if arguments[0] in ("api", "workers"):
            context = FORK if arguments[0] == "api" else self._workers_context
            self.processes[name] = Forked(*arguments, environment=environment, out=log, err=log, context=context)
        else:
            with log.open("ab") as file:
                self.processes[name] = subprocess.Popen(
                    [sys.executable, "-m", *arguments],
                    env=environment,
                    cwd=REPOSITORY,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        return self.processes[name]

    def start_api(self) -> None:
        self.start("api", "api")
        eventually_sync(self._alive, f"the API responds; see {self.folder}/api.log", within_s=60)

    @contextlib.contextmanager
    def second_api(self, **settings: str) -> Iterator[str]:
        """Start another API process on the same servers; yields its URL."""
        port = free_port()
        self.start(f"api-{port}", "api", HEADRACE_PORT=str(port), **settings)
        url = f"http://127.0.0.1:{port}"
        eventually_sync(lambda: _answers(url), "the second API responds", within_s=60)
        yield url
        process = self.processes.pop(f"api-{port}")
        process.terminate()
        process.wait(20)

    def replace_api(self, url: str) -> None:
        """`kill -9` an API process and start another with the same URL."""
        self._replace(url, self.kill)

    def restart_api(self, url: str) -> None:
        """Stop an API process with SIGTERM and start another with the same URL."""

        def terminate(name: str) -> None:
            process = self.processes.pop(name)
            process.terminate()
            process.wait(30)

        self._replace(url, terminate)

    def _replace(self, url: str, end: Callable[[str], None]) -> None:
        port = url.rpartition(":")[2]
        name = "api" if url == self.url else f"api-{port}"
        end(name)
        self.start(name, "api", HEADRACE_PORT=port)
        eventually_sync(lambda: _answers(url), f"{name} responds again", within_s=60)

    def start_worker(
        self, model: str, *, program: Sequence[str] = ("workers",), within_s: float = 120, **settings: str
    ) -> str:
        """Start a worker and wait until it is ready. Returns the name of its process.

        `program`: the arguments of `python -m` before the model, for a module that changes the worker before it runs.
        """
        name, ready = self._begin_worker(model, program, settings)
        eventually_sync(ready, f"{name} is ready; see {self.folder}/{name}.log", within_s=within_s)
        return name

    def start_workers(self, models: Iterable[str], *, within_s: float = 120) -> None:
        """Start a worker for each model, all at once, and wait until they are ready."""
        for name, ready in [self._begin_worker(model, ("workers",), {}) for model in models]:
            eventually_sync(ready, f"{name} is ready; see {self.folder}/{name}.log", within_s=within_s)

    def _begin_worker(
        self, model: str, program: Sequence[str], settings: Mapping[str, str]
    ) -> tuple[str, Callable[[], bool]]:
        """Start a worker; returns the name of its process, and whether it is ready."""
        self._count += 1
        name = f"worker-{self._count}"
        process = self.start(name, *program, model, **settings)
        self._models[name] = model
        log = self.folder / f"{name}.log"

        def ready() -> bool:
            assert process.poll() is None, f"{name} has exited:\n{log.read_text()[-3000:]}"
            return " ready." in log.read_text()

        return name, ready

    def workers(self, model: str) -> list[str]:
        """The names of the processes that serve a model."""
        return [name for name in self.processes if self._models.get(name) == model]

    def kill(self, name: str) -> None:
        """`kill -9` a process, as if its node had failed."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def stop(self, *, gently: bool = False) -> None:
        """Kill all processes and their children. `gently`: send SIGTERM first."""
        running = [process for process in self.processes.values() if process.poll() is None]
        children = [child for process in running for child in psutil.Process(process.pid).children(recursive=True)]
        if gently:
            for process in running:
                process.terminate()
            for process in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
        for process in running:
            process.kill()
        for process in running:
            process.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self.processes.clear()

    def client(self, **options: Any) -> httpx.AsyncClient:
        """An HTTP client that sends the API key."""
        headers = {"Authorization": f"Bearer {KEY}", **options.pop("headers", {})}
        options.setdefault("base_url", self.url)
        return httpx.AsyncClient(headers=headers, timeout=60, **options)

    def _alive(self) -> bool:
        assert self.processes["api"].poll() is None, (self.folder / "api.log").read_text()[-3000:]
        return _answers(self.url)


@functools.cache
def stack_template(url: str) -> str:
    """The name of the template database for stacks: migrated, with the key that their clients use."""
    create_database(url, STACK_TEMPLATE, template=TEMPLATE)
    environment = {**os.environ, "DATABASE_URL": switch_database(url, STACK_TEMPLATE), "HEADRACE_API_KEY": KEY}
    run_forked("api.keys", "ensure", "e2e", environment=environment, check=True)
    return STACK_TEMPLATE


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=1).status_code == 200
    except httpx.TransportError:
        return False


def write_models(path: Path, models: Sequence[Mapping[str, Any]], routes: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Write a models.yaml; its content is JSON, which is valid YAML."""
    import json

    path.write_text(json.dumps({"models": list(models)} | ({"routes": list(routes)} if routes else {})))
    return path
