"""Commands that become another program, and completion by the shell."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.command_line import REPOSITORY
from tests.support.scripted_api import ScriptedApi, reply


def headrace(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli", *arguments]
    clean = {name: value for name, value in os.environ.items() if name != "HEADRACE_URL"}
    return subprocess.run(
        command, cwd=REPOSITORY, env=clean | environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_up_is_make_up() -> None:
    ended = headrace("up", PYTHON="/bin/false")
    assert ended.returncode == 2
    assert ended.stderr.startswith("PYTHON=/bin/false is not a Python 3.11 or newer.")


def test_engine_of_up_is_that_of_make_up() -> None:
    ended = headrace("up", "--engine", "tpu", PYTHON=sys.executable)
    assert ended.returncode == 1
    assert "ENGINE=tpu is not known" in ended.stderr


def test_bench_runs_the_benchmarks_with_its_arguments() -> None:
    help_text = headrace("bench", "--", "--help")
    assert help_text.returncode == 0
    assert "--quick" in help_text.stdout
    unknown = headrace("bench", "--only", "nonsense", "--quick")
    assert unknown.returncode != 0
    assert "nonsense" in unknown.stderr


def completed(line: str, url: str, **environment: str) -> list[str]:
    """What bash is offered for the last word of a line."""
    words = line.split(" ")
    asked = {"_HEADRACE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    ended = headrace(**asked, **environment, HEADRACE_URL=url)
    assert ended.stderr == ""
    return ended.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("headrace bat", ["batch", "batches"]),
        ("headrace submit --model s", ["sim", "small"]),
        ("headrace models show o", ["orphan"]),
        ("headrace jobs --status can", ["cancelling", "cancelled"]),
    ],
)
def test_commands_values_and_models_are_completed(api: ScriptedApi, line: str, offered: list[str]) -> None:
    api.on("GET /v1/models", reply({"data": [{"id": name} for name in ("sim", "small", "orphan")]}))
    assert completed(line, api.url, HEADRACE_API_KEY="hr_x") == offered


def test_completion_without_a_server_offers_nothing(api: ScriptedApi) -> None:
    api.on("GET /v1/models", reply({}, 401))
    assert completed("headrace submit --model s", api.url) == []
