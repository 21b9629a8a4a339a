"""vLLM's server and this project answer the same requests with the same status codes and the same content.

vLLM's server answers all requests first and is stopped before the stack's engine starts, because two engines at a time
would be slow. `parity_cases.py` lists the intended differences with their reasons; any other difference fails.

Not compared: ids, times, model names and the value of the fingerprint; nulls and absent fields; an empty text next to
tool calls; the prompt's cached tokens, which depend on earlier requests; error messages.
"""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import VLLM_OPTIONS
from tests.e2e.parity_cases import ACCEPTED, CASES, CHAT, DIFFERENT, EARLIER, IN_STREAM, REJECTED, Case
from tests.support.relayed_vllm import ENGINES, QUESTION, SETTINGS, TOKENS, Relayed, relayed
from tests.support.stack import Stack
from tests.support.vllm_server import vllm_server

pytestmark = [
    # All in one process, because all use the answers of one server.
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    # torch and vLLM emit warnings at import.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

MODEL = "smollm2"
CONCURRENCY = 32
PER_ANSWER = {"id", "created", "model", "system_fingerprint", "prompt_tokens_details"}
TOLERANCE = 2e-3


@dataclass(frozen=True)
class Answer:
    """A status with a body, or with the `frames` of a stream; `done`: the stream ended with `[DONE]`."""

    status: int
    body: dict[str, Any] | None = None
    frames: tuple[dict[str, Any], ...] = ()
    done: bool = False

    @property
    def error(self) -> bool:
        """Whether the status or the stream contains an error."""
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
    """Send every case, without and with streaming."""
    limit = asyncio.Semaphore(CONCURRENCY)

    async def send_one(case: Case, stream: bool) -> Answer:
        async with limit:
            return await send(client, case, stream=stream)

    requests = [(case, stream) for case in CASES for stream in (False, True)]
    answers = await asyncio.gather(*(send_one(case, stream) for case, stream in requests))
    return {(case.name, stream): answer for (case, stream), answer in zip(requests, answers, strict=True)}


@dataclass(frozen=True)
class Server:
    """What vLLM's server has answered: itself, and to our relaying engines."""

    answers: dict[tuple[str, bool], Answer]
    direct: dict[str, Any]
    relayed: dict[str, Relayed]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Answers of vLLM's server, with the options and the (faster) executor of the stack's engine."""
    with vllm_server(tmp_path_factory.mktemp("vllm_server"), MODEL, VLLM_OPTIONS, **SETTINGS) as url:

        async def send_cases() -> Server:
            async with httpx.AsyncClient(base_url=url, timeout=300) as client:
                answers = await send_all(client)
                body = {
                    "model": MODEL,
                    "messages": [{"role": "user", "content": QUESTION}],
                    "temperature": 0,
                    "max_tokens": TOKENS,
                }
                direct = (await client.post("/v1/chat/completions", json=body)).json()
            return Server(answers, direct, await relayed(url, MODEL))

        return asyncio.run(send_cases())


@pytest.fixture(scope="module")
def theirs(server: Server) -> dict[tuple[str, bool], Answer]:
    """The answers of vLLM's server to all cases."""
    return server.answers


@pytest.fixture(scope="module")
def ours(theirs: dict[tuple[str, bool], Answer], vllm_stack: Stack) -> dict[tuple[str, bool], Answer]:
    """The answers of this project, after vLLM's server has exited."""

    async def send_cases() -> dict[tuple[str, bool], Answer]:
        async with vllm_stack.client() as client:
            client.timeout = httpx.Timeout(300)
            return await send_all(client)

    return asyncio.run(send_cases())


@pytest.mark.parametrize("api", ENGINES)
def test_a_relaying_engine_returns_the_answer_of_vllms_server(server: Server, api: str) -> None:
    """The server speaks several APIs; an engine returns the same text, finish reason and usage through each."""
    (choice,), usage = server.direct["choices"], server.direct["usage"]
    answer = server.relayed[api]
    assert answer.resumed == (answer.choice if api == "responses" else None)
    assert answer.context == (None if api == "anthropic" else VLLM_OPTIONS["max_model_len"])
    assert answer.choice.text == choice["message"]["content"]
    assert answer.choice.finish_reason == choice["finish_reason"]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )


@pytest.mark.parametrize("stream", [False, True], ids=["complete", "streamed"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_answer_equals_that_of_vllms_server(
    theirs: dict[tuple[str, bool], Answer], ours: dict[tuple[str, bool], Answer], case: Case, stream: bool
) -> None:
    expected, actual = theirs[case.name, stream], ours[case.name, stream]
    differs = case.differs if case.only in ("", "streamed" if stream else "complete") else ""
    if differs == REJECTED:
        assert (expected.status, actual.status) == (200, 400)
        return
    if differs == ACCEPTED:
        assert (expected.status, actual.status) == (400, 200)
        assert not actual.error
        return
    if differs == EARLIER:
        assert (actual.status, actual.error, expected.error) == (400, True, True)
        return
    if differs == DIFFERENT:
        assert (actual.status, actual.error) == (expected.status, expected.error) == (200, False)
        return
    if differs == IN_STREAM:
        assert (expected.status, actual.status) == (400, 200)
        assert actual.error
        return
    assert (actual.status, actual.error) == (expected.status, expected.error), actual.body or actual.frames
    if expected.error:
        error = (actual.body or actual.frames[-1])["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["message"]
        return
    if stream:
        assert actual.done is expected.done is True
        assert_same(assemble(case, actual), assemble(case, expected))
        for position in (0, -1):
            assert_same(shape(actual.frames[position]), shape(expected.frames[position]), f"frame {position}")
    else:
        assert actual.body is not None
        assert expected.body is not None
        assert ("system_fingerprint" in actual.body) is ("system_fingerprint" in expected.body)
        assert_same(comparable(actual.body), comparable(expected.body))


def comparable(value: Any) -> Any:
    """An answer without nulls and without the fields that differ in each answer."""
    if isinstance(value, dict):
        return {
            name: "an id" if name == "id" and "function" in value else comparable(item)
            for name, item in value.items()
            if item is not None
            and (name not in PER_ANSWER or (name == "id" and "function" in value))
            and not (name == "content" and item == "" and value.get("tool_calls"))
        }
    return [comparable(item) for item in value] if isinstance(value, list) else value


def shape(frame: dict[str, Any]) -> Any:
    """The fields of a chunk, without their values."""
    return {
        "keys": sorted(comparable(frame).keys() | {"id", "model"} & frame.keys()),
        "delta": [sorted(comparable(choice.get("delta") or {})) for choice in frame["choices"]],
        "roles": [(choice.get("delta") or {}).get("role") for choice in frame["choices"]],
    }


def assemble(case: Case, answer: Answer) -> dict[str, Any]:
    """The usage of a stream, and its choices assembled from the chunks."""
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    for frame in answer.frames:
        usage = frame.get("usage") or usage
        for part in frame["choices"]:
            choice = choices.setdefault(part["index"], {"content": "", "reasoning": "", "calls": {}, "logprobs": []})
            delta = part["delta"] if case.path == CHAT else {"content": part["text"]}
            choice["content"] += delta.get("content") or ""
            choice["reasoning"] += delta.get("reasoning") or ""
            for call in delta.get("tool_calls") or ():
                tool_call = choice["calls"].setdefault(call["index"], {"name": "", "arguments": "", "ids": 0})
                tool_call["name"] += call["function"].get("name") or ""
                tool_call["arguments"] += call["function"].get("arguments") or ""
                tool_call["ids"] += call.get("id") is not None
            if part.get("logprobs"):
                choice["logprobs"].append(part["logprobs"])
            for name in ("finish_reason", "stop_reason"):
                if part.get(name) is not None:
                    choice[name] = part[name]
    for choice in choices.values():
        choice["logprobs"] = concatenate(choice["logprobs"])
    return {"choices": choices, "usage": comparable(usage)}


def concatenate(parts: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Concatenate the lists of log probabilities of chunks."""
    lists: dict[str, list[Any]] = {}
    for part in parts:
        for name, items in part.items():
            lists.setdefault(name, []).extend(items or ())
    return lists


def assert_same(actual: Any, expected: Any, where: str = "answer") -> None:
    """Compare recursively, floats with a tolerance."""
    if isinstance(actual, float) or isinstance(expected, float):
        assert math.isclose(actual, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE), where
    elif isinstance(actual, dict) and isinstance(expected, dict):
        assert actual.keys() == expected.keys(), f"{where}: {actual} is not {expected}"
        for name in expected:
            assert_same(actual[name], expected[name], f"{where}.{name}")
    elif isinstance(actual, list) and isinstance(expected, list):
        assert len(actual) == len(expected), f"{where}: {actual} is not {expected}"
        for position, (send_one, other) in enumerate(zip(actual, expected, strict=True)):
            assert_same(send_one, other, f"{where}[{position}]")
    else:
        assert actual == expected, where


def test_cases_have_unique_names_and_differences_have_reasons() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60
    assert all(case.why for case in CASES if case.differs)
