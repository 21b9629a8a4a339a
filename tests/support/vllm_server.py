"""vLLM's own server, with the bundled model. It speaks OpenAI's APIs and Anthropic's Messages API."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from shared.config.bundled_model import bundled_model_path
from tests.support.forked import Forked
from tests.support.ports import free_port
from tests.support.vllm_forks import FORK_WITH_VLLM
from tests.support.waiting import eventually_sync

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


@contextmanager
def vllm_server(folder: Path, model: str, options: Mapping[str, object], **settings: str) -> Iterator[str]:
    """Run the server, which serves the bundled model under this name; yields its address.

    `options` are those of the engine, which also gets the faster executor of this project. `settings` are added to the
    environment.
    """
    port = free_port()
    flags = [
        *("--model", str(bundled_model_path("SmolLM2-135M-Instruct")), "--served-model-name", model),
        *("--host", "127.0.0.1", "--port", str(port), "--disable-log-stats"),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    ]
    log = folder / "server.log"
    server = Forked(
        *("tests.support.vllm_api_server", json.dumps(options), *flags),
        environment={**os.environ, **OFFLINE, **settings},
        out=log,
        err=log,
        context=FORK_WITH_VLLM,
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


def _end(server: Forked) -> None:
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
