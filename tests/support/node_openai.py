"""OpenAI's JavaScript client, in a pinned version; installed into the user's cache when it is first needed."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from shared.config.bundled_model import cache_folder

VERSION = "6.30.1"
INSTALL_S = 240


def node_openai() -> Path:
    """Return the folder in which scripts can import the client. Skips the test if Node or npm is missing."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed; OpenAI's JavaScript client needs it")
    folder = cache_folder() / "node" / f"openai-{VERSION}"
    complete = folder / "complete"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            (folder / "package.json").write_text(json.dumps({"private": True, "type": "module"}))
            npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", f"openai@{VERSION}"]
            subprocess.run(npm, cwd=folder, check=True, timeout=INSTALL_S)
            complete.touch()
    return folder


def run_script(script: str, *arguments: str) -> dict[str, object]:
    """Run an ES module that may `import OpenAI from "openai"`; return the JSON object that it prints."""
    # Node resolves imports relative to the script, or to the working directory if it reads the script from stdin.
    done = subprocess.run(
        ["node", "--input-type=module", "-", *arguments],
        cwd=node_openai(),
        input=script,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed: dict[str, object] = json.loads(done.stdout)
    return printed
