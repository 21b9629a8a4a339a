"""Real clients, installed from their packages, run against real processes with the simulated engine.

Its answers call the first tool with the smallest valid arguments; after a tool's result, they are short texts.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.support.client_programs import npm_packages, python_clients
from tests.support.database import drop_database
from tests.support.stack import KEY, Stack

AI_SDK = ("ai@6.0.326", "@ai-sdk/openai@3.0.141", "@ai-sdk/openai-compatible@2.0.92", "@ai-sdk/anthropic@3.0.140")
ZOD = "zod@4.6.7"
CLAUDE_CODE = "@anthropic-ai/claude-code@2.1.197"
CODEX = "@openai/codex@0.171.0"
PROGRAMS = Path(__file__).parent / "client_programs"
TOKENS = 12
SCHEMA = {
    "type": "object",
    "properties": {"wheels": {"type": "integer"}},
    "required": ["wheels"],
    "additionalProperties": False,
}
# The first run installs packages.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Answers end by themselves, because agents ask for more after an incomplete one."""
    options = {"ttft_ms": 5, "itl_ms": 1, "stop_after": TOKENS, "max_model_len": 200_000}
    models: list[dict[str, object]] = [{"name": "sim", "engine": "simulated", "options": options}]
    stack = make_stack(servers, tmp_path_factory, "clients", models)
    try:
        stack.start_api()
        stack.start_worker("sim")
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_clients")


def run(command: list[str], folder: Path, text: str = "", **environment: str) -> str:
    """Run a client without this process's settings and keys; return what it prints.

    The proxies and the home of the user stay out, so nothing but the stack is configured.
    """
    result = subprocess.run(
        command,
        cwd=folder,
        input=text,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def run_python(name: str, stack: Stack, folder: Path) -> Any:
    return json.loads(run([str(python_clients()), str(PROGRAMS / f"{name}_program.py"), stack.url, KEY], folder))


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_vercel_ai_sdk(stack: Stack) -> None:
    script = (PROGRAMS / "vercel_ai_sdk.mjs").read_text()
    folder = npm_packages("ai-sdk", *AI_SDK, ZOD)
    seen = json.loads(run(["node", "--input-type=module", "-", stack.url, KEY], folder, script))
    error = seen.pop("error")
    assert error["status"] == 404
    assert "nobody" in error["message"]
    assert len(seen) == 5
    for name, result in seen.items():
        streamed = result["streamed"]
        assert result["text"] == streamed["text"] != "", name
        assert (result["finish"], streamed["finish"], streamed["failure"]) == ("stop", "stop", None), name
        assert result["usage"] == streamed["usage"] == TOKENS, name
        if name != "openai completion":
            assert [step["finish"] for step in result["steps"]] == ["tool-calls", "stop"], name
            assert result["steps"][0]["results"] == ["water: 3 m"], name
            assert result["steps"][1]["text"] != "", name
            assert {"tool-call", "tool-result", "text-delta", "finish"} <= set(result["parts"]), name
            assert "error" not in result["parts"], name
            assert result["object"] == {"wheels": 0}, name


def test_pydantic_ai(stack: Stack, tmp_path: Path) -> None:
    seen = run_python("pydantic_ai", stack, tmp_path)
    assert set(seen) == {"chat", "responses", "anthropic"}
    for name, result in seen.items():
        assert result["text"] == result["streamed"] != "", name
        assert (result["tokens"], result["structured"]) == (TOKENS, 0), name
        assert result["parts"] == ["user-prompt", "tool-call", "tool-return", "text"], name


@pytest.mark.long
def test_langchain(stack: Stack, tmp_path: Path) -> None:
    seen = run_python("langchain", stack, tmp_path)
    assert set(seen) == {"chat", "responses", "anthropic"}
    for name, result in seen.items():
        assert result["text"] == result["streamed"] != "", name
        assert result["tokens"] == result["streamed_tokens"] == TOKENS, name
        assert (result["result"], result["structured"]) == ("water: 3 m", 0), name
        assert result["after"] != "", name


@pytest.mark.long
def test_instructor(stack: Stack, tmp_path: Path) -> None:
    seen = run_python("instructor", stack, tmp_path)
    assert len(seen) == 6
    assert set(seen.values()) == {0}


@pytest.mark.long
def test_openai_agents_sdk(stack: Stack, tmp_path: Path) -> None:
    seen = run_python("openai_agents", stack, tmp_path)
    assert set(seen) == {"chat", "responses"}
    for name, result in seen.items():
        assert result["items"] == result["streamed_items"], name
        assert result["items"] == ["tool_call_item", "tool_call_output_item", "message_output_item"], name
        assert result["text"] == result["streamed"] != "", name
        assert result["second"] != "", name
        assert result["structured"] == 0, name


@pytest.mark.long
def test_claude_code(stack: Stack, tmp_path: Path) -> None:
    program = npm_packages("claude-code", CLAUDE_CODE) / "node_modules" / ".bin" / "claude"

    def claude(*arguments: str) -> list[dict[str, Any]]:
        output = run(
            [str(program), "-p", *arguments],
            tmp_path,
            ANTHROPIC_BASE_URL=stack.url,
            ANTHROPIC_AUTH_TOKEN=KEY,
            ANTHROPIC_MODEL="sim",
            ANTHROPIC_DEFAULT_HAIKU_MODEL="sim",
            CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
            DISABLE_AUTOUPDATER="1",
        )
        return json_lines(output)

    plain = claude("How high is the water?", "--tools", "", "--output-format", "json")[-1]
    assert (plain["is_error"], plain["stop_reason"], plain["num_turns"]) == (False, "end_turn", 1)
    assert plain["result"] != ""
    again = claude("And now?", "--tools", "", "--output-format", "json", "--continue")[-1]
    assert (again["is_error"], again["session_id"]) == (False, plain["session_id"])
    events = claude(
        "Read it.", "--tools", "Read", "--output-format", "stream-json", "--verbose", "--include-partial-messages"
    )
    blocks = [
        block["type"]
        for event in events
        if event["type"] in ("assistant", "user")
        for block in event["message"]["content"]
    ]
    assert blocks == ["thinking", "tool_use", "tool_result", "thinking", "text"]
    assert (events[-1]["is_error"], events[-1]["num_turns"]) == (False, 2)
    schema = json.dumps(SCHEMA)
    structured = claude("How many?", "--tools", "", "--output-format", "json", "--json-schema", schema)[-1]
    assert structured["structured_output"] == {"wheels": 0}
    context = claude("/context", "--output-format", "json")[-1]  # counts tokens with tools
    assert (context["is_error"], "Context Usage" in context["result"]) == (False, True)


@pytest.mark.long
def test_codex(stack: Stack, tmp_path: Path) -> None:
    """Codex has no `wire_api = "chat"` any more. The command that the answer asks for does not exist."""
    program = npm_packages("codex", CODEX) / "node_modules" / ".bin" / "codex"
    (tmp_path / ".codex").mkdir()
    (tmp_path / ".codex" / "config.toml").write_text(
        'model = "sim"\nmodel_provider = "headrace"\n[model_providers.headrace]\nname = "Headrace"\n'
        f'base_url = "{stack.url}/v1"\nenv_key = "HEADRACE_API_KEY"\nwire_api = "responses"\n'
    )
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))

    def codex(*arguments: str) -> list[dict[str, Any]]:
        command = [str(program), "exec", *arguments, "--json", "--skip-git-repo-check"]
        return json_lines(run(command, tmp_path, HEADRACE_API_KEY=KEY))

    for events in (codex("How high?"), codex("resume", "--last", "Now?")):
        items = [event["item"]["type"] for event in events if event["type"] == "item.completed"]
        assert items[-2:] == ["command_execution", "agent_message"]
        assert events[-1]["type"] == "turn.completed"
        assert events[-1]["usage"]["output_tokens"] > 0
    typed = codex("How many?", "--output-schema", "schema.json")
    assert json.loads(typed[-2]["item"]["text"]) == {"wheels": 0}
