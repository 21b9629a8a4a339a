"""vLLM's own OpenAI server in its fastest configuration: no request log, no statistics."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.processes import Processes, answers, free_port
from benchmarks.systems.system import System
from benchmarks.systems.vllm_model import ENVIRONMENT, NAME, VllmModel

START_S = 900.0


@contextlib.contextmanager
def vllm_server(folder: Path, model: VllmModel) -> Iterator[System]:
    """Start the server with the model."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--model", str(model.folder), "--served-model-name", NAME),
        *("--disable-log-stats", "--disable-uvicorn-access-log"),
        *model.flags,
    ]
    with Processes(folder) as processes:
        server = processes.start("server", command, ENVIRONMENT)
        processes.wait(server, lambda: answers(f"http://127.0.0.1:{port}/health"), START_S)
        yield System(name="vllm", port=port, processes=processes)
