"""The code of a request: what a page has just done, as a command or a program that does the same over the API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Parameters that OpenAI's Python client knows; it takes all others as `extra_body`.
_KNOWN = frozenset({
    "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "messages", "metadata", "model", "n",
    "parallel_tool_calls", "presence_penalty", "prompt", "prompt_cache_key", "reasoning_effort", "response_format",
    "seed", "stop", "stream", "temperature", "tool_choice", "tools", "top_p", "user",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Code:
    """One request in three languages. The address and the key are read from environment variables."""

    curl: str
    python: str
    node: str


def code_of(body: Mapping[str, Any], headers: Mapping[str, str]) -> Code:
    """The code that streams the answer to the body of a job, as OpenAI's clients do.

    `headers` are sent beside the usual ones.
    """
    request = {"model": body.get("model", ""), **body, "stream": True}
    if "max_completion_tokens" not in request and isinstance(request.get("logprobs"), int) and "messages" in request:
        # A job has the number of alternatives as `logprobs`; OpenAI's API has two parameters.
        request |= {"logprobs": True, "top_logprobs": request["logprobs"]}
    path = "chat/completions" if "messages" in request else "completions"
    return Code(_curl(path, request, headers), _python(path, request, headers), _node(path, request, headers))


def _curl(path: str, request: Mapping[str, Any], headers: Mapping[str, str]) -> str:
    lines = [
        f'curl -N "$HEADRACE_URL/v1/{path}"',
        '-H "Authorization: Bearer $HEADRACE_API_KEY"',
        "-H 'Content-Type: application/json'",
        *(f"-H {_quoted(f'{name}: {value}')}" for name, value in headers.items()),
        f"-d {_quoted(_json(request))}",
    ]
    return " \\\n  ".join(lines) + "\n"


def _python(path: str, request: Mapping[str, Any], headers: Mapping[str, str]) -> str:
    chat = path == "chat/completions"
    known = {name: value for name, value in request.items() if name in _KNOWN}
    extra = {name: value for name, value in request.items() if name not in _KNOWN}
    arguments = [*known.items()]
    if headers:
        arguments.append(("extra_headers", dict(headers)))
    if extra:
        arguments.append(("extra_body", extra))
    lines = [f"    {name}={_python_literal(value, 1)}," for name, value in arguments]
    text = "chunk.choices[0].delta.content" if chat else "chunk.choices[0].text"
    return "\n".join(
        [
            "import os",
            "",
            "from openai import OpenAI",
            "",
            'client = OpenAI(base_url=os.environ["HEADRACE_URL"] + "/v1", api_key=os.environ["HEADRACE_API_KEY"])',
            f"stream = client.{'chat.' if chat else ''}completions.create(",
            *lines,
            ")",
            "for chunk in stream:",
            "    if chunk.choices:",
            f'        print({text} or "", end="", flush=True)',
            "",
        ]
    )


def _node(path: str, request: Mapping[str, Any], headers: Mapping[str, str]) -> str:
    chat = path == "chat/completions"
    options = f", {{ headers: {_json(dict(headers))} }}" if headers else ""
    text = "chunk.choices[0]?.delta?.content" if chat else "chunk.choices[0]?.text"
    return "\n".join(
        [
            'import OpenAI from "openai";',
            "",
            "const client = new OpenAI({",
            "  baseURL: `${process.env.HEADRACE_URL}/v1`,",
            "  apiKey: process.env.HEADRACE_API_KEY,",
            "});",
            f"const stream = await client.{'chat.' if chat else ''}completions.create({_json(request)}{options});",
            "for await (const chunk of stream) {",
            f'  process.stdout.write({text} ?? "");',
            "}",
            "",
        ]
    )


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _quoted(text: str) -> str:
    """A word of a shell. Unlike `shlex.quote`, it is quoted always, as readers expect of JSON."""
    return "'" + text.replace("'", "'\\''") + "'"


def _python_literal(value: Any, depth: int) -> str:
    """A JSON value as Python, indented like JSON."""
    inner, outer = "    " * (depth + 1), "    " * depth
    match value:
        case dict() if value:
            items = (
                f"{json.dumps(key, ensure_ascii=False)}: {_python_literal(item, depth + 1)}"
                for key, item in value.items()
            )
            return "{\n" + "".join(f"{inner}{item},\n" for item in items) + outer + "}"
        case list() if value:
            return "[\n" + "".join(f"{inner}{_python_literal(item, depth + 1)},\n" for item in value) + outer + "]"
        case str():
            return json.dumps(value, ensure_ascii=False)
        case _:
            return repr(value)
