"""Runs vLLM's own server with options of an engine, and with the executor that our engine uses on this machine.

python -m tests.support.vllm_api_server OPTIONS FLAG...    (OPTIONS: a JSON object)
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Iterator

from workers.engines.vllm.executor import cpu_options

# Set by our package when it is imported; vLLM's server has its own limit.
OURS = "VLLM_MAX_STOP_STRINGS"


def _flag(name: str, value: object) -> Iterator[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        yield f"--{flag}" if value else f"--no-{flag}"
    else:
        yield from (f"--{flag}", str(value))


def main() -> None:
    options = json.loads(sys.argv[1])
    options |= cpu_options(options)
    os.environ.pop(OURS, None)
    sys.argv[1:] = [*sys.argv[2:], *(word for name, value in options.items() for word in _flag(name, value))]
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
