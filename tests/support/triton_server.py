"""A real Triton server: the one in the wheel `nvidia-pytriton`, installed into the user's cache on first use.

Its Python backend needs the shared library of a Python that numpy 1 supports; the server itself needs none.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from shared.config.bundled_model import cache_folder
from tests.support.cached_install import install_once
from tests.support.client_programs import INSTALL_S
from tests.support.ports import free_port
from tests.support.waiting import eventually_sync

VERSION = "0.7.0"
# Its Python backend fails with numpy 2.
NUMPY = "1.26.4"
PYTHONS = ("3.12", "3.11", "3.10")
MODELS = Path(__file__).with_name("triton_models")
START_S = 60
NEEDS = f"Triton needs Linux on x86-64 and a libpython of {', '.join(PYTHONS)}; Debian: apt-get install libpython3.11"
_IS_SUPPORTED = sys.platform == "linux" and platform.machine() == "x86_64"


@dataclass(frozen=True, slots=True)
class TritonServer:
    """A running server with the models of `triton_models`. `model` follows the script in its prompt."""

    url: str
    model: str = "scripted"


@contextlib.contextmanager
def triton_server(folder: Path) -> Iterator[TritonServer]:
    """Start a server with its log in `folder`. Skips the test if this machine cannot run it."""
    if (python := _python()) is None or not _IS_SUPPORTED:
        pytest.skip(NEEDS)
    installed = _installed(python)
    program = installed / "pytriton" / "tritonserver"
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        str(program / "bin" / "tritonserver"),
        f"--model-repository={MODELS}",
        f"--backend-directory={program / 'backends'}",
        # Regions of shared memory, which several servers would share otherwise.
        f"--backend-config=python,shm-region-prefix-name=headrace_{uuid.uuid4().hex[:8]}",
        "--model-control-mode=explicit",
        "--load-model=scripted",
        "--http-address=127.0.0.1",
        f"--http-port={port}",
        "--allow-grpc=false",
        "--allow-metrics=false",
        "--exit-timeout-secs=1",
    ]
    libraries = [str(sysconfig.get_config_var("LIBDIR")), os.environ.get("LD_LIBRARY_PATH", "")]
    environment = os.environ | {
        "TRITON_MODEL_PACKAGES": str(installed / "numpy"),
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
    }
    log = folder / "triton.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        _wait_until_ready(process, url, log)
        yield TritonServer(url)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    def is_ready() -> bool:
        if process.poll() is not None:
            raise AssertionError(f"Triton exited with {process.returncode}:\n{log.read_text(errors='replace')[-4000:]}")
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{url}/v2/health/ready").is_success
        return False

    eventually_sync(is_ready, "Triton is ready", within_s=START_S)


def _python() -> str | None:
    """The version of a Python whose shared library is installed: that of this process, or another one."""
    current = f"{sys.version_info.major}.{sys.version_info.minor}"
    for version in sorted(PYTHONS, key=lambda version: version != current):
        own = Path(str(sysconfig.get_config_var("LIBDIR"))) / f"libpython{version}.so.1.0"
        if own.is_file() or ctypes.util.find_library(f"python{version}") is not None:
            return version
    return None


def _installed(python: str) -> Path:
    """The folder with the server, set up for this version of Python, and its numpy in `numpy`."""

    def install(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        wheels = [*pip, "--only-binary=:all:", "--no-compile", "--python-version", python]
        server = ["--target", str(folder), f"nvidia-pytriton=={VERSION}"]
        numpy = ["--target", str(folder / "numpy"), f"numpy=={NUMPY}"]
        for arguments in (server, numpy):
            subprocess.run([*wheels, *arguments], check=True, timeout=INSTALL_S)
        program = folder / "pytriton" / "tritonserver"
        stubs, backend = program / "python_backend_stubs", program / "backends" / "python"
        stub = shutil.copy(stubs / python / "triton_python_backend_stub", backend)
        for file in (Path(stub), program / "bin" / "tritonserver"):
            file.chmod(0o755)

    return install_once(cache_folder() / "triton" / f"{VERSION}-python{python}", install)


if __name__ == "__main__":  # install it before the tests need it
    found = _python()
    if found is None or not _IS_SUPPORTED:
        sys.exit(NEEDS)
    _installed(found)
