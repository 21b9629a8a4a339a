"""vLLM's own server, with the bundled model. It speaks OpenAI's APIs and Anthropic's Messages API."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from shared.config.bundled_model import bundled_model_path
from tests.support.cpu_options import read_cpu_options
from tests.support.ports import free_port
from tests.support.stack import REPOSITORY
from tests.support.waiting import eventually_sync

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
# Set by our package when it is imported, as in a test process that has run an engine; vLLM's server has its own limit.
OURS = "VLLM_MAX_STOP_STRINGS"


@contextmanager
def vllm_server(folder: Path, model: str, options: Mapping[str, object], **settings: str) -> Iterator[str]:
    """Run the server, which serves the bundled model under this name; yields its address.

    `options` are those of the engine, which also gets the faster executor of this project. `settings` are added to the
    environment.
    """
    cpu = read_cpu_options(options)
    port = free_port()
    flags = [
        *("--model", str(bundled_model_path("SmolLM2-135M-Instruct")), "--served-model-name", model),
        *("--host", "127.0.0.1", "--port", str(port), "--disable-log-stats"),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        *(word for name, value in {**options, **cpu.options}.items() for word in _flag(name, value)),
    ]
    variables = {**os.environ, **cpu.variables, **OFFLINE, **settings}
    log = folder / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags],
            env={name: value for name, value in variables.items() if name != OURS},
            cwd=REPOSITORY,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            return httpx.get(f"{url}/health", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    try:
        eventually_sync(ready, f"vLLM's server answers; see {log}", within_s=300)
        yield url
    finally:
        _end(server)


def _flag(name: str, value: object) -> Iterator[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        yield f"--{flag}" if value else f"--no-{flag}"
    else:
        yield from (f"--{flag}", str(value))


def _end(server: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM, then SIGKILL to the remaining processes of the server and its engine."""
    children = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
    server.terminate()
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    for child in children:
        if child.is_running():
            child.kill()
