"""The code of a request in three languages: it sends what the page has sent, whatever the texts are."""

from __future__ import annotations

import ast
import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from api.console.code import code_of

NODE = shutil.which("node")
TEXT = "It's \"quoted\"\\ `$(reboot)` ${x}\n'''\nüml 🌊 </script>"
BODY: dict[str, Any] = {
    "model": "sim",
    "messages": [{"role": "user", "content": TEXT}],
    "temperature": 0.5,
    "stop": [TEXT],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
    "cache": {"ttl": 60},
    "store": False,
    "top_k": None,
}
HEADERS = {"Cache-Control": "no-store"}
SENT = {**BODY, "stream": True}


def test_curl_sends_the_request() -> None:
    words = shlex.split(code_of(BODY, HEADERS).curl.replace("\\\n", " "))
    assert words[:3] == ["curl", "-N", "$HEADRACE_URL/v1/chat/completions"]
    assert "Authorization: Bearer $HEADRACE_API_KEY" in words
    assert "Cache-Control: no-store" in words
    assert json.loads(words[words.index("-d") + 1]) == SENT


def test_python_sends_the_request() -> None:
    tree = ast.parse(code_of(BODY, HEADERS).python)
    (call,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "client.chat.completions.create"
    ]
    arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert arguments.pop("extra_headers") == HEADERS
    extra = arguments.pop("extra_body")
    assert extra.keys() == {"cache", "store", "top_k"}, "OpenAI's client does not know them, or means another thing"
    assert {**arguments, **extra} == SENT


@pytest.mark.skipif(NODE is None, reason="needs `node` on PATH")
def test_node_sends_the_request(tmp_path: Path) -> None:
    package = tmp_path / "node_modules" / "openai"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"name": "openai", "type": "module", "main": "index.js"}')
    (package / "index.js").write_text(
        "export default class { constructor(options) { this.chat = { completions: { create: async (...sent) => {"
        " console.log(JSON.stringify([options, ...sent])); return []; } } }; } }"
    )
    program = tmp_path / "program.mjs"
    program.write_text(code_of(BODY, HEADERS).node)
    environment = {"HEADRACE_URL": "http://api", "HEADRACE_API_KEY": "hr_key"}
    assert NODE is not None
    result = subprocess.run([NODE, program], env=environment, capture_output=True, text=True, check=True)
    options, sent, more = json.loads(result.stdout)
    assert options == {"baseURL": "http://api/v1", "apiKey": "hr_key"}
    assert sent == SENT
    assert more == {"headers": HEADERS}


def test_a_raw_prompt_is_a_completion() -> None:
    code = code_of({"model": "sim", "prompt": "Once"}, {})
    assert "$HEADRACE_URL/v1/completions" in code.curl
    assert "client.completions.create" in code.python
    assert "client.completions.create" in code.node


def test_log_probabilities_are_asked_for_as_openai_does() -> None:
    assert '"top_logprobs": 3' in code_of({**BODY, "logprobs": 3}, {}).curl
