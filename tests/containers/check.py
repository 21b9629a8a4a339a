"""Checks the containers: builds them, starts docker-compose.yml with two workers, stops one and kills one during a
stream, and restarts all services.

    python tests/containers/check.py [--cpu] [--keep]

Needs root, podman, docker-compose (1.29 or later) and, if no image registry can be reached, debootstrap.
CHECK_BUILD_FLAGS: additional flags of `podman build`, such as mounts of pip's configuration.
Not part of `make test`: it takes some minutes and 1 GB of disk, or 10 GB with --cpu, which also runs vLLM.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shlex
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
PROJECT = "headrace-check"
PORT, FLOWER_PORT = 18000, 15555
URL = f"http://127.0.0.1:{PORT}"
READY_S = 240.0
PASSWORDS = (
    "POSTGRES_PASSWORD",
    "POSTGRES_APP_PASSWORD",
    "REDIS_PASSWORD",
    "REDIS_API_PASSWORD",
    "REDIS_WORKER_PASSWORD",
    "REDIS_FLOWER_PASSWORD",
    "FLOWER_PASSWORD",
)
# For hosts where crun or the kernel rejects Docker's defaults; harmless elsewhere.
CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=1000:2000"]
[engine]
runtime = "runc"
"""
ULIMITS = {"nofile": {"soft": 1024, "hard": 4096}, "nproc": {"soft": 1000, "hard": 2000}}


class Failed(Exception):
    """A check has failed."""


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, **environment}, check=False, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise Failed(f"{shlex.join(command)}\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    return done.stdout


def build(*, cpu: bool) -> None:
    """Build the images, with the names that docker-compose.yml uses."""
    flags = shlex.split(os.environ.get("CHECK_BUILD_FLAGS", ""))
    images = [("headrace-api", "api/Dockerfile", []), ("headrace-worker-light", "workers/Dockerfile", ["light"])]
    if cpu:
        images.append(("headrace-worker-cpu", "workers/Dockerfile", ["cpu"]))
    for name, file, target in images:
        began = time.monotonic()
        target = ["--target", *target] if target else []
        run("podman", "build", "--format", "docker", *flags, *target, "-f", file, "-t", f"{name}:{VERSION}", ".")
        size = int(run("podman", "image", "inspect", "--format", "{{.Size}}", f"{name}:{VERSION}")) / 1e6
        log(f"built {name}: {size:.0f} MB, {time.monotonic() - began:.0f} s")


class Compose:
    """Runs docker-compose against podman's socket, with docker-compose.yml and an empty .env file."""

    def __init__(self, folder: Path, *, cpu: bool) -> None:
        self.worker = "worker" if cpu else "worker-light"
        self.model = "smollm2" if cpu else "sim"
        self.long = 1000 if cpu else 4000  # tokens: about ten seconds, so that the worker is killed during the job
        self._no_env = folder / "env"  # do not use the .env of this installation
        self._no_env.touch()
        # podman's socket ignores the limits in CONTAINERS_CONF.
        services = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
        self._limits = folder / "limits.yml"
        self._limits.write_text(json.dumps({"services": {name: {"ulimits": ULIMITS} for name in services}}))
        self.key = f"hr_check_{secrets.token_hex(24)}"
        self._environment = {
            "DOCKER_HOST": f"unix://{folder}/podman.sock",
            "COMPOSE_PROJECT_NAME": PROJECT,
            "COMPOSE_PROFILES": "cpu" if cpu else "light",
            "HEADRACE_MODELS_FILE": "./models.yaml" if cpu else "./models.simulated.yaml",
            "HEADRACE_MODEL": self.model,
            "HEADRACE_DRAIN_S": "1",  # shorter than a job, so that the job is returned to the queue
            "HEADRACE_PORT": str(PORT),
            "HEADRACE_FLOWER_PORT": str(FLOWER_PORT),
            "HEADRACE_API_KEY": self.key,
            **{name: secrets.token_hex(16) for name in PASSWORDS},
            "GRAFANA_PASSWORD": "not-used",
        }
        self.flower_password = self._environment["FLOWER_PASSWORD"]

    def __call__(self, *arguments: str) -> str:
        files = ("-f", "docker-compose.yml", "-f", str(self._limits))
        return run("docker-compose", "--env-file", str(self._no_env), *files, *arguments, **self._environment)

    def up(self) -> None:
        began = time.monotonic()
        self("up", "-d", "--no-build", "--scale", f"{self.worker}=2")
        workers: dict[str, str] = {}
        while len(workers) < 2 or not _ready():
            if time.monotonic() - began > READY_S:
                raise Failed(f"not ready after {READY_S:g} s\n{self('ps')}\n{self('logs', '--tail=20')}")
            time.sleep(0.5)
            workers = self.healthy_workers()
        log(f"up, with {len(workers)} healthy workers, after {time.monotonic() - began:.0f} s")

    def healthy_workers(self) -> dict[str, str]:
        """The ids of the worker containers that are healthy, by hostname."""
        found = {}
        for container in self("ps", "-q", self.worker).split():
            (state,) = json.loads(run("podman", "inspect", container))
            if state["State"].get("Health", state["State"].get("Healthcheck", {})).get("Status") == "healthy":
                found[state["Config"]["Hostname"]] = container
        return found


def _ready() -> bool:
    try:
        return httpx.get(f"{URL}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@contextlib.contextmanager
def docker_api(folder: Path) -> Iterator[None]:
    """Serve podman's Docker-compatible socket and run the health checks, which systemd does on other hosts."""
    command = ["podman", "system", "service", "--time=0", f"unix://{folder}/podman.sock"]
    with (folder / "podman.log").open("wb") as output:
        server = subprocess.Popen(command, stderr=output)
    stopped = threading.Event()

    def check_health() -> None:
        while not stopped.wait(2):
            listed = run("podman", "ps", "-q", "--filter", f"label=com.docker.compose.project={PROJECT}")
            for container in listed.split():
                subprocess.run(["podman", "healthcheck", "run", container], capture_output=True, check=False)

    thread = threading.Thread(target=check_health)
    try:
        while not (folder / "podman.sock").exists():
            time.sleep(0.1)
        thread.start()
        yield
    finally:
        stopped.set()
        thread.join()
        server.terminate()
        server.wait()


def events(text: str) -> list[tuple[int, str, dict[str, Any]]]:
    """Parse a complete SSE body: number (0 if it has none), kind and data of each event."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in block.splitlines() if not line.startswith(":"))
        if "event" in fields:
            found.append((int(fields.get("id", 0)), fields["event"], json.loads(fields["data"])))
    return found


def streamed(client: httpx.Client, job_id: str) -> str:
    return client.get(f"/v1/jobs/{job_id}/stream", timeout=300).text


def end_worker_during_stream(compose: Compose, client: httpx.Client, *how: str) -> dict[str, Any]:
    """Stop or kill a worker with a podman command during a stream. Returns the job, which ended on the other worker."""
    containers = compose.healthy_workers()
    body = {"model": compose.model, "prompt": "Once upon a time", "max_tokens": compose.long, "temperature": 0}
    job = client.post("/v1/jobs", json=body).raise_for_status().json()
    text, ending, last, silence_s = "", None, time.monotonic(), 0.0
    with client.stream("GET", f"/v1/jobs/{job['id']}/stream", timeout=300) as response:
        for part in response.iter_text():
            text += part
            now = time.monotonic()
            silence_s, last = max(silence_s, now - last), now
            if ending is None and text.count("job.delta") >= 10:
                worker = client.get(f"/v1/jobs/{job['id']}").json()["attempts"][-1]["worker"]
                container = containers[worker.partition("@")[2]]
                log(f"podman {how[0]} of {worker} during the stream")
                ending = subprocess.Popen(["podman", *how, container], stdout=subprocess.DEVNULL)
                last, silence_s = time.monotonic(), 0.0
    if ending is None or ending.wait() != 0:
        raise Failed("the job ended before its worker could be stopped, or podman failed to stop it")
    done: dict[str, Any] = client.get(f"/v1/jobs/{job['id']}").raise_for_status().json()
    seen_events = events(text)
    numbers = [number for number, _, _ in seen_events if number]
    shown = "".join(data["text"] for _, kind, data in seen_events if kind == "job.delta")
    if len(done["attempts"]) < 2 or any(kind == "job.restarted" for _, kind, _ in seen_events):
        raise Failed(f"the job did not continue on another worker: {done['attempts']}")
    if numbers != sorted(set(numbers)) or shown != done["output_text"]:
        raise Failed("the stream has a gap or a repeat")
    log(f"{done['id']} is {done['status']} after {len(done['attempts'])} attempts, with a complete stream")
    code = run("podman", "inspect", "--format", "{{.State.ExitCode}}", container).strip()
    log(f"longest silence of the stream: {silence_s:.1f} s; the worker's exit code: {code}")
    if how[0] == "stop" and code != "0":
        raise Failed("the worker did not exit within its grace period")
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="use vLLM on the CPU instead of the simulated engine")
    parser.add_argument("--keep", action="store_true", help="leave the stack running")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-check-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        (folder / "containers.conf").write_text(CONTAINERS_CONF)
        os.environ["CONTAINERS_CONF"] = str(folder / "containers.conf")
        try:
            run("sh", "tests/containers/stand_ins.sh")
            build(cpu=options.cpu)
            stack.enter_context(docker_api(folder))
            compose = Compose(folder, cpu=options.cpu)
            if not options.keep:
                stack.callback(compose, "down", "--volumes")
            check(compose)
        except Failed as error:
            log(f"FAILED: {error}")
            return 1
    log("all checks passed")
    return 0


def check(compose: Compose) -> None:
    compose.up()
    client = httpx.Client(base_url=URL, headers={"Authorization": f"Bearer {compose.key}"}, timeout=60)
    flower = f"http://127.0.0.1:{FLOWER_PORT}/workers"
    if httpx.get(flower).status_code != 401:
        raise Failed("Flower does not require a password")
    if httpx.get(flower, auth=("admin", compose.flower_password)).status_code != 200:
        raise Failed("Flower rejects its password")
    if "ready" not in compose("exec", "-T", "api", "headrace", "status", "--once"):
        raise Failed("the command line in the API's image does not see a ready installation")
    end_worker_during_stream(compose, client, "stop", "--time", "60")
    compose.up()
    done = end_worker_during_stream(compose, client, "kill", "--signal", "KILL")
    before = streamed(client, done["id"])
    form = {"file": ("a.jsonl", b'{"custom_id": "a"}\n'), "purpose": (None, b"batch")}
    file = client.post("/v1/files", files=form).raise_for_status().json()["id"]

    compose("down")
    log("down")
    compose.up()
    if client.get(f"/v1/jobs/{done['id']}").json() != done:
        raise Failed("the job has changed")
    if streamed(client, done["id"]) != before:
        raise Failed("the job's stream has changed")
    if client.get(f"/v1/files/{file}/content").content != b'{"custom_id": "a"}\n':
        raise Failed("the file has changed")
    answer = client.post(
        "/v1/jobs",
        json={"model": compose.model, "prompt": "Once upon a time", "max_tokens": 8},
        headers={"Prefer": "wait=60"},
    )
    if answer.status_code != 200 or answer.json()["usage"]["completion_tokens"] != 8:
        raise Failed(f"a new job does not run: {answer.text}")
    log("after down and up, the key, job, stream and file are unchanged, and a new job runs")


if __name__ == "__main__":
    sys.exit(main())
