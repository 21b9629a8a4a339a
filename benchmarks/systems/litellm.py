"""LiteLLM's proxy in its own virtual environment: one worker process, no database, logging or callbacks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

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
            subprocess.run([*pip, f"litellm=={VERSION}"], check=True)
            subprocess.run([*pip, *_proxy_requirements(folder)], check=True)
            complete.touch()
    return folder


def _proxy_requirements(folder: Path) -> list[str]:
    """What the proxy of the installed LiteLLM requires, without packages of its own.

    Those have the admin's pages, migrations of its database and enterprise features, and not every index has them.
    """
    (site,) = (folder / "lib").glob("python*/site-packages")
    (installed,) = metadata.distributions(name="litellm", path=[str(site)])
    requirements = [Requirement(line) for line in installed.requires or ()]
    return [
        f"{item.name}{_extras(item)}{item.specifier}"
        for item in requirements
        if item.marker is not None
        and item.marker.evaluate({"extra": "proxy"})
        and not item.marker.evaluate({"extra": ""})
        and not item.name.startswith("litellm-")
    ]


def _extras(requirement: Requirement) -> str:
    return f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""


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
        key = f"sk-{secrets.token_hex(16)}"  # it does not start without one
        proxy = processes.start("proxy", command, ENVIRONMENT | {"LITELLM_MASTER_KEY": key})
        processes.wait(proxy, lambda: answers(f"http://127.0.0.1:{port}/health/liveliness"), START_S)
        headers = {"Authorization": f"Bearer {key}"}
        yield System(name="litellm", port=port, processes=processes, headers=headers)
