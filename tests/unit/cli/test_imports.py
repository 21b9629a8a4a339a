"""Commands start fast, and remote ones need httpx, typer and rich only."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable

import pytest

from tests.support.command_line import REPOSITORY
from tests.support.scripted_api import ScriptedApi, reply

PROBE = """
import json, sys
sys.argv = ["headrace", *json.loads(sys.argv[1])]
try:
    from cli.app import main
    main()
finally:
    print("MODULES", json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""


def imported(*arguments: str) -> set[str]:
    """The top-level packages that a command has imported."""
    command = [sys.executable, "-c", PROBE, json.dumps(arguments)]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    (line,) = re.findall(r"^MODULES (.*)$", process.stderr, re.MULTILINE)
    assert process.returncode == 0, process.stderr
    return set(json.loads(line)) - set(sys.stdlib_module_names)


def modules_of(distributions: Iterable[str]) -> set[str]:
    """The import names of distributions."""
    names = {name.lower().replace("_", "-") for name in distributions}
    found = importlib.metadata.packages_distributions()
    return {module for module, of in found.items() if {name.lower().replace("_", "-") for name in of} & names}


def requirements(name: str) -> set[str]:
    """A distribution, and all that it requires and that is installed."""
    try:
        lines = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:  # of another platform or Python
        return set()
    direct = [re.split(r"[^A-Za-z0-9._-]", line)[0] for line in lines if "extra ==" not in line]
    return {name}.union(*map(requirements, direct))


@pytest.mark.parametrize("arguments", [["--help"], ["submit", "--help"], ["models", "--help"], ["--show-completion"]])
def test_help_and_completion_do_not_load_the_http_client(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    if arguments == ["--show-completion"]:
        arguments = ["--show-completion", "bash"]
    assert not imported(*arguments) & {"httpx", "rich", "api", "workers", "shared"}


def test_remote_commands_need_three_packages(api: ScriptedApi) -> None:
    api.on("GET /v1/jobs", reply({"data": [], "first_id": None, "last_id": None, "has_more": False}))
    found = imported("--url", api.url, "jobs")
    used = {"httpx", "rich", "typer"}
    assert used <= found
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    others = {re.split(r"[^A-Za-z0-9._-]", line)[0] for line in project} - set().union(*map(requirements, used))
    assert found & (modules_of(others) | {"api", "workers", "shared", "migrations"}) == set()
