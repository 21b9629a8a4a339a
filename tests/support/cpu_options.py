"""Prints the options and variables of a vLLM engine on this machine's CPU, as JSON: `cpu_options` imports vLLM.

python -m tests.support.cpu_options OPTIONS_OF_THE_ENGINE
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.support.vllm_forks import run_with_vllm

PREFIX = "CPU OPTIONS "


class CpuOptions(NamedTuple):
    options: dict[str, Any]
    variables: dict[str, str]


def read_cpu_options(options: Mapping[str, object]) -> CpuOptions:
    """What `cpu_options` returns for these options, and the variables that it sets, without importing vLLM here."""
    done = run_with_vllm("tests.support.cpu_options", json.dumps(options), environment=os.environ)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(PREFIX)]
    return CpuOptions(*json.loads(line.removeprefix(PREFIX)))


def main(options: str) -> None:
    from workers.engines.vllm.executor import cpu_options

    before = dict(os.environ)
    chosen = cpu_options(json.loads(options))
    print(PREFIX + json.dumps([chosen, dict(os.environ.items() - before.items())]))


if __name__ == "__main__":
    main(sys.argv[1])
