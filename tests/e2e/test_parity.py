"""The same requests, to vLLM's own server and to this project: the same status codes, and the same answers.

vLLM's server answers first, all requests, and is stopped before the stack's engine starts: two engines at once
would only be slow. What differs on purpose is said in `parity_cases.py`, each with its why; what else differs fails.

Left out of the comparison: ids, times, model names, the fingerprint's value; a null, which is the same as nothing, and
an empty text beside tool calls; the cached tokens of the prompt, which depend on what was asked before; messages.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import pytest

from shared.config.bundled_model import bundled_model_path
from tests.e2e.conftest import VLLM_OPTIONS
from tests.e2e.parity_cases import CASES, CHAT, IN_STREAM, OTHERWISE, REFUSED, SOONER, TAKEN, Case
from tests.support.ports import free_port
from tests.support.stack import REPOSITORY, Stack
from tests.support.waiting import eventually_sync

pytestmark = [
    pytest.mark.timeout(900),
    # torch and vLLM warn about themselves at import.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

MODEL = "smollm2"
AT_ONCE = 16
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
PER_ANSWER = {"id", "created", "model", "system_fingerprint", "prompt_tokens_details"}
TOLERANCE = 2e-3


@dataclass(frozen=True)
class Answer:
    """A status and what was said; `frames` of a stream, without the last `[DONE]`, which `done` tells of."""

    status: int
    body: dict[str, Any] | None = None
    frames: tuple[dict[str, Any], ...] = ()
    done: bool = False

    @property
    def error(self) -> bool:
        """Whether it tells of an error, by its status or in its stream."""
        return self.status != 200 or any("error" in frame for frame in self.frames)


async def send(client: httpx.AsyncClient, case: Case, *, stream: bool) -> Answer:
    body: dict[str, Any] = {"model": MODEL, **case.body}
    if not stream:
        response = await client.post(case.path, json=body)
        return Answer(response.status_code, response.json())
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    response = await client.post(case.path, json=body)
    if response.status_code != 200:
        return Answer(response.status_code, response.json())
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    frames = tuple(json.loads(line) for line in lines if line != "[DONE]")
    return Answer(200, frames=frames, done=lines[-1] == "[DONE]")


async def send_all(client: httpx.AsyncClient) -> dict[tuple[str, bool], Answer]:
    """Every case, whole and streamed."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(case: Case, stream: bool) -> Answer:
        async with turn:
            return await send(client, case, stream=stream)

    asked = [(case, stream) for case in CASES for stream in (False, True)]
    answers = await asyncio.gather(*(one(case, stream) for case, stream in asked))
    return {(case.name, stream): answer for (case, stream), answer in zip(asked, answers, strict=True)}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Answer]:
    """What vLLM's own server answers, with the options of the stack's engine, and its executor, which is faster."""
    from workers.engines.vllm.executor import cpu_options

    folder = tmp_path_factory.mktemp("vllm_server")
    port = free_port()
    options = {**VLLM_OPTIONS, **cpu_options(VLLM_OPTIONS)}
    flags = [
        *("--model", str(bundled_model_path("SmolLM2-135M-Instruct")), "--served-model-name", MODEL),
        *("--host", "127.0.0.1", "--port", str(port), "--disable-log-stats"),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        *(word for name, value in options.items() for word in _flag(name, value)),
    ]
    log = folder / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags],
            env={**os.environ, **OFFLINE},
            cwd=REPOSITORY,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"http://127.0.0.1:{port}"

        def ready() -> bool:
            assert server.poll() is None, log.read_text()[-3000:]
            try:
                return httpx.get(f"{url}/health", timeout=2).status_code == 200
            except httpx.TransportError:
                return False

        eventually_sync(ready, f"vLLM's server answers; see {log}", within_s=300)

        async def ask() -> dict[tuple[str, bool], Answer]:
            async with httpx.AsyncClient(base_url=url, timeout=300) as client:
                return await send_all(client)

        return asyncio.run(ask())
    finally:
        _end(server)


@pytest.fixture(scope="module")
def ours(theirs: dict[tuple[str, bool], Answer], vllm_stack: Stack) -> dict[tuple[str, bool], Answer]:
    """What this project answers; after vLLM's server has gone."""

    async def ask() -> dict[tuple[str, bool], Answer]:
        async with vllm_stack.client() as client:
            client.timeout = httpx.Timeout(300)
            return await send_all(client)

    return asyncio.run(ask())


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_same_answer(
    theirs: dict[tuple[str, bool], Answer], ours: dict[tuple[str, bool], Answer], case: Case, stream: bool
) -> None:
    expected, got = theirs[case.name, stream], ours[case.name, stream]
    differs = case.differs if case.only in ("", "streamed" if stream else "whole") else ""
    if differs == REFUSED:
        assert (expected.status, got.status) == (200, 400)
        return
    if differs == TAKEN:
        assert (expected.status, got.status) == (400, 200)
        assert not got.error
        return
    if differs == SOONER:
        assert (got.status, got.error, expected.error) == (400, True, True)
        return
    if differs == OTHERWISE:
        assert (got.status, got.error) == (expected.status, expected.error) == (200, False)
        return
    if differs == IN_STREAM:
        assert (expected.status, got.status) == (400, 200)
        assert got.error
        return
    assert (got.status, got.error) == (expected.status, expected.error), got.body or got.frames
    if expected.error:
        error = (got.body or got.frames[-1])["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["message"]
        return
    if stream:
        assert got.done is expected.done is True
        assert_same(whole_of(case, got), whole_of(case, expected))
        for place in (0, -1):
            assert_same(shape(got.frames[place]), shape(expected.frames[place]), f"frame {place}")
    else:
        assert got.body is not None
        assert expected.body is not None
        assert ("system_fingerprint" in got.body) is ("system_fingerprint" in expected.body)
        assert_same(said(got.body), said(expected.body))


def said(value: Any) -> Any:
    """An answer without what is another's each time, and without nulls."""
    if isinstance(value, dict):
        return {
            name: "an id" if name == "id" and "function" in value else said(item)
            for name, item in value.items()
            if item is not None
            and (name not in PER_ANSWER or (name == "id" and "function" in value))
            and not (name == "content" and item == "" and value.get("tool_calls"))
        }
    return [said(item) for item in value] if isinstance(value, list) else value


def shape(frame: dict[str, Any]) -> Any:
    """What a chunk has, whatever it says."""
    return {
        "keys": sorted(said(frame).keys() | {"id", "model"} & frame.keys()),
        "delta": [sorted(said(choice.get("delta") or {})) for choice in frame["choices"]],
        "roles": [(choice.get("delta") or {}).get("role") for choice in frame["choices"]],
    }


def whole_of(case: Case, answer: Answer) -> dict[str, Any]:
    """A stream's choices, put together, and its usage."""
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    for frame in answer.frames:
        usage = frame.get("usage") or usage
        for part in frame["choices"]:
            choice = choices.setdefault(part["index"], {"content": "", "reasoning": "", "calls": {}, "logprobs": []})
            gained = part["delta"] if case.path == CHAT else {"content": part["text"]}
            choice["content"] += gained.get("content") or ""
            choice["reasoning"] += gained.get("reasoning") or ""
            for call in gained.get("tool_calls") or ():
                made = choice["calls"].setdefault(call["index"], {"name": "", "arguments": "", "ids": 0})
                made["name"] += call["function"].get("name") or ""
                made["arguments"] += call["function"].get("arguments") or ""
                made["ids"] += call.get("id") is not None
            if part.get("logprobs"):
                choice["logprobs"].append(part["logprobs"])
            for name in ("finish_reason", "stop_reason"):
                if part.get(name) is not None:
                    choice[name] = part[name]
    for choice in choices.values():
        choice["logprobs"] = joined(choice["logprobs"])
    return {"choices": choices, "usage": said(usage)}


def joined(parts: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Log probabilities of chunks, list by list."""
    lists: dict[str, list[Any]] = {}
    for part in parts:
        for name, items in part.items():
            lists.setdefault(name, []).extend(items or ())
    return lists


def assert_same(got: Any, expected: Any, where: str = "answer") -> None:
    """Equal, numbers with a fraction nearly so."""
    if isinstance(got, float) or isinstance(expected, float):
        assert math.isclose(got, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE), where
    elif isinstance(got, dict) and isinstance(expected, dict):
        assert got.keys() == expected.keys(), f"{where}: {got} is not {expected}"
        for name in expected:
            assert_same(got[name], expected[name], f"{where}.{name}")
    elif isinstance(got, list) and isinstance(expected, list):
        assert len(got) == len(expected), f"{where}: {got} is not {expected}"
        for place, (one, other) in enumerate(zip(got, expected, strict=True)):
            assert_same(one, other, f"{where}[{place}]")
    else:
        assert got == expected, where


def test_there_are_enough() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60
    assert all(case.why for case in CASES if case.differs)


def _flag(name: str, value: object) -> Iterator[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        yield f"--{flag}" if value else f"--no-{flag}"
    else:
        yield from (f"--{flag}", str(value))


def _end(server: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL to what is left of it and its engine."""
    children = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
    server.terminate()
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    for child in children:
        if child.is_running():
            child.kill()
