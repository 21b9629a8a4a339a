"""LiteLLM's proxy in its own virtual environment: one worker process, no database, logging or callbacks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.processes import Processes, answers, free_port
from benchmarks.systems.system import System
from shared.config.bundled_model import cache_folder

VERSION = "1.110.2"
START_S = 120.0
ENVIRONMENT = {
    "LITELLM_LOG": "ERROR",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # do not fetch it
    "LITELLM_TELEMETRY": "False",
    "DISABLE_ADMIN_UI": "True",
    "NO_DOCS": "True",
    "NO_REDOC": "True",
}


def environment() -> Path:
    """Return the folder of LiteLLM's virtual environment, creating it if missing."""
    folder = cache_folder() / "venvs" / f"litellm-{VERSION}"
    complete = folder / "complete"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, f"litellm[proxy]=={VERSION}"], check=True)
            complete.touch()
    return folder


@contextlib.contextmanager
def litellm(folder: Path, upstreams: Mapping[str, str]) -> Iterator[System]:
    """Start LiteLLM in front of `upstreams`, a map from model name to URL."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    models = [
        {"model_name": name, "litellm_params": {"model": "openai/sim", "api_base": url, "api_key": "none"}}
        for name, url in upstreams.items()
    ]
    settings = {"telemetry": False, "drop_params": True, "callbacks": [], "set_verbose": False}
    config = folder / "config.yaml"
    config.write_text(json.dumps({"model_list": models, "litellm_settings": settings}))  # JSON is valid YAML
    command = [
        *(str(environment() / "bin" / "litellm"), "--config", str(config)),
        *("--host", "127.0.0.1", "--port", str(port), "--num_workers", "1", "--telemetry", "False"),
    ]
    with Processes(folder) as processes:
        proxy = processes.start("proxy", command, ENVIRONMENT)
        processes.wait(proxy, lambda: answers(f"http://127.0.0.1:{port}/health/liveliness"), START_S)
        yield System(name="litellm", port=port, processes=processes)
