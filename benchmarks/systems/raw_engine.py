"""vLLM's engine without a server (`benchmarks.raw`)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from random import randrange
from typing import Any

import orjson

from benchmarks.load.plan import Plan
from benchmarks.processes import Processes, answers, free_port
from benchmarks.systems.system import PROMPT, System
from benchmarks.systems.vllm_model import ENVIRONMENT, VllmModel

START_S = 900.0


class RawEngine(System):
    """A running engine, which takes all requests of a round at once."""

    def chat(
        self, model: str, tokens: int, *, ignore_eos: bool = True, concurrency: int = 1, requests: int = 1, **plan: Any
    ) -> Plan:
        """Return a plan of rounds of `concurrency` answers each; a round is one HTTP request."""
        body = {"streams": concurrency, "max_tokens": tokens, "ignore_eos": ignore_eos, "prompt": PROMPT}
        rounds = requests // concurrency
        return Plan(
            port=self.port, path="/v1/rounds", body=body, first_number=randrange(10**7), requests=rounds, **plan
        )


@contextlib.contextmanager
def raw_engine(folder: Path, model: VllmModel) -> Iterator[System]:
    """Start the engine with the model."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    environment = ENVIRONMENT | {
        "RAW_MODEL": str(model.folder),
        "RAW_OPTIONS": orjson.dumps(model.options).decode(),
        # The engine runs in this process: nothing else uses it, and another process would take a core for its loop.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    command = [*("uvicorn", "benchmarks.raw.api:app"), *("--port", str(port), "--no-access-log")]
    with Processes(folder) as processes:
        engine = processes.start("engine", [sys.executable, "-m", *command], environment)
        processes.wait(engine, lambda: answers(f"http://127.0.0.1:{port}/health"), START_S)
        yield RawEngine(name="raw-engine", port=port, processes=processes, streams=False)
