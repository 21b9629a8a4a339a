"""A Prometheus server: `prometheus` on PATH, for example from Debian's package of that name."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.ports import free_port
from tests.support.stack import REPOSITORY
from tests.support.waiting import eventually_sync

OBSERVE = REPOSITORY / "observe"
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="needs `prometheus` and `promtool` on PATH; Debian and Ubuntu: apt-get install prometheus",
)


class Prometheus:
    """The HTTP API of a Prometheus server."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def get(self, path: str, **parameters: str) -> Any:
        """Return `data` of a response. If Prometheus rejects the request, fail with its error message."""
        response = self._client.get(path, params=parameters).json()
        assert response["status"] == "success", f"{parameters}: {response.get('error')}"
        return response["data"]

    def query(self, expression: str) -> dict[tuple[tuple[str, str], ...], float]:
        """The current values of an expression, by labels."""
        result = self.get("/query", query=expression)["result"]
        return {tuple(sorted(sample["metric"].items())): float(sample["value"][1]) for sample in result}

    def value(self, expression: str) -> float | None:
        """The current value of an expression with at most one result; None if it has none."""
        values = list(self.query(expression).values())
        assert len(values) <= 1, values
        return values[0] if values else None


@contextlib.contextmanager
def prometheus_of(targets: Path, folder: Path) -> Iterator[Prometheus]:
    """Start Prometheus with the configuration for one host and short intervals. It reads its targets from `targets`."""
    config = yaml.safe_load((OBSERVE / "prometheus.one-box.yml").read_text())
    config["global"] = {"scrape_interval": "2s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(OBSERVE / pattern) for pattern in config["rule_files"]]
    for job in config["scrape_configs"]:
        for discovery in job["file_sd_configs"]:
            discovery["refresh_interval"] = "1s"
            discovery["files"] = [str(targets / Path(name).name) for name in discovery["files"]]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/prometheus",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        eventually_sync(lambda: _ready(url), f"Prometheus is ready; see {folder}/prometheus.log", within_s=60)
        with httpx.Client(base_url=f"{url}/api/v1", timeout=20, trust_env=False) as client:
            yield Prometheus(client)
    finally:
        process.terminate()
        process.wait(30)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", timeout=2, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def promtool(*arguments: str) -> str:
    """Return the output of promtool. If promtool fails, fail with its output."""
    result = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
