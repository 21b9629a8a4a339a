"""The naive Celery task and its route (`benchmarks.naive`), with their own Valkey."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson

from benchmarks.processes import Processes, answers, free_port
from benchmarks.systems.system import System
from benchmarks.systems.vllm_model import ENVIRONMENT, VllmModel
from launcher.embedded import start_valkey

START_S = 900.0


@contextlib.contextmanager
def naive(folder: Path, model: VllmModel) -> Iterator[System]:
    """Start the worker with the model, and the route."""
    folder.mkdir(parents=True, exist_ok=True)
    valkey = start_valkey(folder / "valkey")
    port = free_port()
    environment = ENVIRONMENT | {
        "NAIVE_REDIS_URL": valkey.url,
        "NAIVE_MODEL": str(model.folder),
        "NAIVE_OPTIONS": orjson.dumps(model.options).decode(),
        # Run the engine in the worker's process: nothing else uses it.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    worker = [*("celery", "-A", "benchmarks.naive.tasks", "worker"), *("--pool", "solo", "--loglevel", "INFO")]
    api = [*("uvicorn", "benchmarks.naive.api:app"), *("--port", str(port), "--no-access-log")]
    try:
        with Processes(folder) as processes:
            processes.track("valkey", valkey.pid)
            route = processes.start("route", [sys.executable, "-m", *api], environment)
            task = processes.start("task", [sys.executable, "-m", *worker], environment)
            processes.wait(route, lambda: answers(f"http://127.0.0.1:{port}/health"))
            processes.wait(task, lambda: " ready." in task.last_lines(10**6), START_S)
            yield System(name="celery-naive", port=port, processes=processes, streams=False)
    finally:
        valkey.stop()
