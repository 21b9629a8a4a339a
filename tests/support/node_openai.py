"""OpenAI's JavaScript client, in a pinned version."""

from __future__ import annotations

import json
import subprocess

from tests.support.client_programs import npm_packages

VERSION = "6.30.1"


def run_script(script: str, *arguments: str) -> dict[str, object]:
    """Run an ES module that may `import OpenAI from "openai"`; return the JSON object that it prints."""
    # Node resolves imports relative to the script, or to the working directory if it reads the script from stdin.
    result = subprocess.run(
        ["node", "--input-type=module", "-", *arguments],
        cwd=npm_packages("openai", f"openai@{VERSION}"),
        input=script,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    printed: dict[str, object] = json.loads(result.stdout)
    return printed
