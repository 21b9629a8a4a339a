"""What pages say about the code is what the code has."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

from docsite.settings_page import PAGE, settings_page
from shared.domain.events import CallDelta, Delta, EventType, delta_event
from shared.domain.opaque import OpaquePart
from tests.support.diagrams import SOURCES, digest, picture_of
from tests.support.stack import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def table(page: Path, heading: str) -> list[str]:
    """The first column of the table below a heading."""
    section = page.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)


def test_the_settings_are_those_of_the_code() -> None:
    assert PAGE.read_text() == settings_page(), "run python -m docsite --update"


def test_each_setting_has_a_meaning() -> None:
    assert [line for line in settings_page().splitlines() if re.match(r"\| `.*\|  \|$", line)] == []


def test_the_variables_of_make_up_are_documented() -> None:
    source = (REPOSITORY / "launcher" / "settings.py").read_text()
    variables = set(re.findall(r'environ(?:\.get\(|, )"([A-Z_]+)"', source))
    pages = (DOCS / "operations.md").read_text() + PAGE.read_text()
    assert [name for name in sorted(variables) if f"`{name}`" not in pages] == []


def test_the_events_are_those_of_the_code() -> None:
    public = {f"job.{kind.value}" for kind in EventType if kind.public}
    assert set(table(DOCS / "events.md", "All events")) == {*public, "job.keepalive"}


def test_the_fields_of_deltas_are_those_of_the_code() -> None:
    delta = Delta(
        0,
        "text",
        (1,),
        "stop",
        reasoning="reasoning",
        tool_calls=(CallDelta(0),),
        logprobs=[b"[]"],
        stop_reason="x",
        prompt_tokens=1,
        prompt_logprobs=[b"[]"],
        opaque=(OpaquePart("provider", "kind", {}),),
        refused=True,
    )
    assert set(table(DOCS / "events.md", "Deltas")) == set(delta_event(1, delta, with_count=True).payload())


def commands_with_another_python(text: str) -> list[str]:
    """The lines with a bare `python -m`, which outside of containers does not have the packages."""
    lines = [line for line in text.splitlines() if re.search(r"(?<![\w/])python -m \w", line)]
    return [line for line in lines if not re.search(r"\bexec\b.* python -m ", line)]


def test_commands_with_another_python_are_found() -> None:
    text = "    python -m api.keys list\n.venv/bin/python -m api\nkubectl exec deploy/api -- python -m api.keys list"
    assert commands_with_another_python(text) == ["    python -m api.keys list"]


# Pages about containers, with the commands of recorded runs, from descriptions in the code, or with former decisions.
@pytest.mark.parametrize(
    "page",
    [
        page
        for page in PAGES
        if page.name not in ("deploy.md", "benchmarks.md", "autoscaling.md", "settings.md")
        and page.parent.name != "decisions"
    ],
    ids=lambda page: str(page.relative_to(REPOSITORY)),
)
def test_commands_use_the_environment_of_make_up(page: Path) -> None:
    assert commands_with_another_python(page.read_text()) == []


@pytest.mark.parametrize("source", sorted(SOURCES.glob("*.mmd")), ids=lambda path: path.stem)
def test_a_picture_is_that_of_its_source(source: Path) -> None:
    assert f'data-source="{digest(source)}"' in picture_of(source).read_text(), "run python -m tests.support.diagrams"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_the_examples_of_a_page_are_valid(page: Path) -> None:
    for language, code in re.findall(r"^```(python|json|yaml)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        match language:
            case "python":
                ast.parse(code)
            case "json":
                json.loads(code)
            case "yaml":
                yaml.safe_load(code)


@pytest.mark.parametrize("source", sorted(SOURCES.glob("*.mmd")), ids=lambda path: path.stem)
def test_the_files_named_in_a_diagram_exist(source: Path) -> None:
    paths = re.findall(r"\b(?:api|workers|shared)/[\w/]+\.py", source.read_text())
    assert [path for path in paths if not (REPOSITORY / path).is_file()] == []
