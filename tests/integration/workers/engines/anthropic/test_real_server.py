"""The `anthropic` engine against a real server: vLLM's, which has the Messages API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest
import pytest_asyncio

from shared.config.models.anthropic import AnthropicModel
from shared.domain.errors import InvalidRequest
from shared.domain.events import Delta
from shared.domain.job import Choice, Usage
from shared.domain.request import (
    ChatOptions,
    Function,
    FunctionCall,
    GenerateRequest,
    Message,
    MessageToolCall,
    Sampling,
    Tool,
)
from tests.support.metrics import worker_metrics
from tests.support.real_engine import SMOLLM2
from tests.support.transcripts import choices_of
from tests.support.vllm_server import vllm_server
from workers.engines.anthropic.engine import AnthropicEngine
from workers.engines.base import NO_PRIOR, Prior

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

ASK = GenerateRequest(
    messages=[
        Message(role="system", content="You are a helpful assistant."),
        Message(role="user", content="What is the capital of France? Answer in one sentence."),
    ],
    sampling=Sampling(max_tokens=40, temperature=0),
)
WEATHER = Tool(function=Function(name="weather", parameters={"type": "object", "properties": {"city": {}}}))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with vllm_server(
        tmp_path_factory.mktemp("vllm_server"), "theirs", {**SMOLLM2.options, "max_model_len": 512}
    ) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(server: str) -> AsyncIterator[AnthropicEngine]:
    options = {"base_url": f"{server}/v1", "default_max_tokens": 40, "prefill": True}
    entry = {"name": "up", "engine": "anthropic", "model": "theirs", "options": options}
    engine = AnthropicEngine(AnthropicModel.model_validate(entry), worker_metrics("up"))
    await engine.start()
    yield engine
    await engine.stop()


async def run(
    engine: AnthropicEngine, request: GenerateRequest = ASK, prior: Prior = NO_PRIOR
) -> tuple[Choice, Usage | None]:
    deltas, usage = [*prior.deltas], None
    async with aclosing(engine.generate("job-1", request, prior)) as items:
        async for item in items:
            if isinstance(item, Delta):
                deltas.append(item)
            elif isinstance(item, Usage):
                usage = item
    return choices_of(deltas)[0], usage


async def test_an_answer(engine: AnthropicEngine) -> None:
    choice, usage = await run(engine)
    assert "Paris" in choice.text
    assert choice.finish_reason in ("stop", "length")
    assert usage is not None
    assert usage.prompt_tokens > 20
    assert 1 < usage.completion_tokens <= 40


async def test_limits_and_stop_sequences(engine: AnthropicEngine) -> None:
    short = ASK.model_copy(update={"sampling": Sampling(max_tokens=3, temperature=0)})
    assert (await run(engine, short))[0].finish_reason == "length"
    stopped = ASK.model_copy(update={"sampling": Sampling(max_tokens=40, temperature=0, stop=["Paris"])})
    choice, _ = await run(engine, stopped)
    assert (choice.finish_reason, choice.stop_reason) == ("stop", "Paris")
    assert "Paris" not in choice.text


async def test_turns_with_tools_are_accepted(engine: AnthropicEngine) -> None:
    call = MessageToolCall(id="call.1", function=FunctionCall(name="weather", arguments='{"city": "Paris"}'))
    messages = [
        *(ASK.messages or ()),
        Message(role="assistant", content="I look.", tool_calls=[call]),
        Message(role="tool", tool_call_id="call.1", content="sunny"),
    ]
    request = ASK.model_copy(update={"messages": messages, "chat": ChatOptions(tools=[WEATHER])})
    choice, usage = await run(engine, request)
    assert choice.finish_reason is not None
    assert usage is not None


async def test_a_prompt_is_counted(engine: AnthropicEngine) -> None:
    _, usage = await run(engine)
    _, counted = await run(engine, ASK.model_copy(update={"prompt_only": True}))
    assert usage is not None
    assert counted is not None
    assert counted.prompt_tokens == usage.prompt_tokens


async def test_a_request_that_is_too_long_is_the_clients_error(engine: AnthropicEngine) -> None:
    with pytest.raises(InvalidRequest):
        await run(engine, ASK.model_copy(update={"messages": [Message(role="user", content="word " * 2000)]}))
