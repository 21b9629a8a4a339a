"""Write the lock files in `requirements/` from `pyproject.toml`: `python -m launcher.lock [--upgrade]`."""

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from launcher.bootstrap import CPU_TORCH_INDEX, LOCKS, REPOSITORY

# Packages in several locks get the same versions: each other lock starts from cpu.txt and keeps the pins that fit.
LOCK_ARGUMENTS = {
    "cpu": ["pyproject.toml", "--extra", "cpu", "--override", "requirements/overrides.txt"],
    "simulated": ["pyproject.toml", "--override", "requirements/overrides.txt"],
    "gpu": ["pyproject.toml", "--extra", "gpu", "--override", "requirements/overrides-gpu.txt"],
    "dev": ["--group", "dev", "--constraint", "requirements/cpu.txt"],
    "clients": ["--group", "clients"],
}


def main(options: list[str]) -> None:
    """Install uv into a temporary environment and compile each lock file with it."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        subprocess.run([f"{folder}/bin/pip", "install", "--quiet", "uv"], check=True)
        for name, arguments in LOCK_ARGUMENTS.items():
            print(f"requirements/{name}.txt", flush=True)
            compile_lock(Path(folder) / "bin" / "uv", name, [*arguments, *options])


def compile_lock(uv: Path, name: str, arguments: list[str]) -> None:
    """Compile one lock file, keeping the pins of cpu.txt. For cpu.txt itself, `--upgrade` replaces them."""
    target = LOCKS / f"{name}.txt"
    if name != "cpu":
        shutil.copy(LOCKS / "cpu.txt", target)
        arguments = [argument for argument in arguments if argument != "--upgrade"]
    environment = dict(os.environ)
    if name == "cpu":
        if links := environment.get("PIP_FIND_LINKS"):
            environment.setdefault("UV_FIND_LINKS", links)
        else:
            arguments = [*arguments, "--extra-index-url", CPU_TORCH_INDEX, "--index-strategy", "unsafe-best-match"]
    command = [str(uv), "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"]
    command += ["--no-header", "--no-annotate", *arguments, "--output-file", str(target)]
    subprocess.run(command, check=True, cwd=REPOSITORY, env=environment)


if __name__ == "__main__":
    main(sys.argv[1:])
