"""Interrupted answers of servers that continue a message of the assistant."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from shared.config.models.openai import OpenAIModel
from shared.domain.events import CallDelta, Delta
from shared.domain.job import Usage
from shared.domain.request import (
    ChatOptions,
    Function,
    GenerateRequest,
    Message,
    Sampling,
    StructuredOutputs,
    Tool,
)
from tests.support.metrics import worker_metrics
from tests.support.vendors.openai import OpenAIVendor
from tests.support.vendors.script import Script
from tests.support.vendors.vendor import KEY, KEY_ENV
from workers.engines.base import NO_PRIOR, CannotContinue, Prior
from workers.engines.openai.engine import OpenAIEngine
from workers.engines.resume import Resume

ASK = GenerateRequest(messages=[Message(role="user", content="Hello")], sampling=Sampling(max_tokens=50))


@pytest.fixture
async def vendor(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OpenAIVendor]:
    monkeypatch.setenv(KEY_ENV, KEY)
    async with OpenAIVendor().serve() as vendor:
        yield vendor


@pytest.fixture
async def engine(vendor: OpenAIVendor) -> AsyncIterator[OpenAIEngine]:
    engine = OpenAIEngine(vendor.spec(prefill=True), worker_metrics("up"))
    await engine.start()
    yield engine
    await engine.stop()


async def run(engine: OpenAIEngine, request: GenerateRequest, prior: Prior) -> tuple[str, Usage | None]:
    text, usage = "", None
    async with aclosing(engine.generate("job-2", request, prior)) as items:
        async for item in items:
            text += item.text if isinstance(item, Delta) else ""
            usage = item if isinstance(item, Usage) else usage
    return text, usage


@pytest.mark.parametrize(("pieces", "rest"), [((" ", "there"), "there"), (("there",), "there"), (("  x",), " x")])
async def test_the_rest_of_an_answer(
    vendor: OpenAIVendor, engine: OpenAIEngine, pieces: tuple[str, ...], rest: str
) -> None:
    """White space at the end of the text so far is generated again, or not, but never shown twice."""
    vendor.scripts = [Script(text=pieces, usage=Usage(12, 0, 4))]
    prior = Prior((Delta(0, "Hi ", unidentified=3),))
    assert engine.resume_mode(ASK, prior) is Resume.EXACT
    assert await run(engine, ASK, prior) == (rest, Usage(9, 0, 7))
    body = vendor.seen[-1].body
    assert body["messages"][-1] == {"role": "assistant", "content": "Hi"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert body["max_tokens"] == 47


@pytest.mark.parametrize(
    ("pieces", "left", "min_left"),
    [(["\u4f60\u597d\u5417"] * 20, 30, 5), ([" international"] * 20, 30, 5), (["a b c d e f g h i j "] * 2, 30, 5)],
    ids=["Chinese", "long words", "several words in a piece"],
)
async def test_what_is_left_of_max_tokens(
    vendor: OpenAIVendor, engine: OpenAIEngine, pieces: list[str], left: int, min_left: int
) -> None:
    """The usage has the tokens as they were counted, also if the pieces have several."""
    vendor.scripts = [Script(text=("!",), usage=Usage(60, 0, 1))]
    prior = Prior([Delta(0, piece, unidentified=1) for piece in pieces])
    request = ASK.model_copy(update={"sampling": Sampling(max_tokens=50, min_tokens=25)})
    _, usage = await run(engine, request, prior)
    body = vendor.seen[-1].body
    assert (body["max_tokens"], body["min_tokens"]) == (left, min_left)
    assert usage == Usage(60 - len(pieces), 0, 1 + len(pieces))


async def test_an_answer_that_already_continues_a_message(vendor: OpenAIVendor, engine: OpenAIEngine) -> None:
    messages = [Message(role="user", content="Hello"), Message(role="assistant", content="Well, ")]
    chat = ChatOptions(continue_final_message=True, add_generation_prompt=False)
    await run(engine, GenerateRequest(messages=messages, chat=chat), Prior((Delta(0, "hi"),)))
    assert [message["content"] for message in vendor.seen[-1].body["messages"]] == ["Hello", "Well, hi"]


TOOL = Tool(function=Function(name="f"))


@pytest.mark.parametrize(
    ("changes", "delta"),
    [
        ({"sampling": Sampling(n=2)}, Delta(0, "Hi")),
        ({"structured_outputs": StructuredOutputs(json_object=True)}, Delta(0, "Hi")),
        ({"chat": ChatOptions(tools=[TOOL])}, Delta(0, "Hi")),
        ({"messages": None, "prompt": [1, 2]}, Delta(0, "Hi")),
        ({}, Delta(0, "Hi", reasoning="Hm")),
        ({}, Delta(0, "", reasoning="Hm")),
        ({}, Delta(0, "Hi", tool_calls=(CallDelta(0, "c", "f", "{"),))),
    ],
)
async def test_what_cannot_continue(
    vendor: OpenAIVendor, engine: OpenAIEngine, changes: dict[str, Any], delta: Delta
) -> None:
    request, prior = ASK.model_copy(update=changes), Prior((delta,))
    assert engine.resume_mode(request, prior) is Resume.NONE
    with pytest.raises(CannotContinue):
        await run(engine, request, prior)
    assert not vendor.seen


@pytest.mark.parametrize(
    ("preset", "options", "continues"),
    [
        ("vllm", {}, True),
        ("sglang", {}, True),
        ("vllm", {"prefill": False}, False),
        ("gemini", {}, False),
        (None, {}, False),
        (None, {"prefill": True}, True),
    ],
)
def test_which_servers_continue(preset: str | None, options: dict[str, Any], continues: bool) -> None:
    entry = {"name": "up", "engine": "openai", "model": "theirs", "preset": preset}
    model = OpenAIModel.model_validate({**entry, "options": {"base_url": "http://127.0.0.1:1/v1", **options}})
    engine = OpenAIEngine(model, worker_metrics("up"))
    assert bool(engine.resume_mode(ASK, NO_PRIOR)) is continues
