"""The `openai` engine against a real server: vLLM's, which keeps responses and continues messages of the assistant."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from shared.config.models.openai import OpenAIModel
from shared.domain.events import Delta, UpstreamState
from shared.domain.job import Choice, Usage
from shared.domain.request import GenerateRequest, Message, Sampling
from tests.support.metrics import worker_metrics
from tests.support.real_engine import SMOLLM2
from tests.support.transcripts import choices_of
from tests.support.vllm_server import vllm_server
from workers.engines.base import NO_PRIOR, CannotContinue, Prior
from workers.engines.openai.engine import OpenAIEngine
from workers.engines.resume import Resume

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

ASK = GenerateRequest(
    messages=[
        Message(role="system", content="You are a helpful assistant."),
        Message(role="user", content="Name three rivers in Europe."),
    ],
    sampling=Sampling(max_tokens=40, temperature=0),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("vllm_server")
    with vllm_server(folder, "theirs", SMOLLM2.options, VLLM_ENABLE_RESPONSES_API_STORE="1") as url:
        yield url


def make(server: str, **fields: Any) -> OpenAIEngine:
    entry = {"name": "up", "engine": "openai", "preset": "vllm", "model": "theirs", **fields}
    model = OpenAIModel.model_validate({**entry, "options": {"base_url": f"{server}/v1"}})
    return OpenAIEngine(model, worker_metrics("up"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def responses(server: str) -> AsyncIterator[OpenAIEngine]:
    engine = make(server, api="responses")
    await engine.start()
    yield engine
    await engine.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chat(server: str) -> AsyncIterator[OpenAIEngine]:
    engine = make(server)
    await engine.start()
    yield engine
    await engine.stop()


class Answer:
    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.state: UpstreamState | None = None
        self.usage: Usage | None = None

    @property
    def choice(self) -> Choice:
        return choices_of(self.deltas)[0]


async def run(engine: OpenAIEngine, prior: Prior = NO_PRIOR, *, until: int | None = None) -> Answer:
    """The answer; with `until`, the generator is closed after this many deltas."""
    answer = Answer()
    async with aclosing(engine.generate("job-1", ASK, prior)) as items:
        async for item in items:
            match item:
                case Delta():
                    answer.deltas.append(item)
                    if len(answer.deltas) == until:
                        break
                case UpstreamState():
                    answer.state = item
                case Usage():
                    answer.usage = item
    return answer


def prior_of(answer: Answer, state: UpstreamState | None) -> Prior:
    text = "".join(delta.text for delta in answer.deltas)
    tokens = sum(delta.tokens for delta in answer.deltas)
    return Prior((Delta(0, text, unidentified=tokens),), True, state, answer.deltas[-1].cursor)


async def test_both_apis_return_the_same(responses: OpenAIEngine, chat: OpenAIEngine) -> None:
    through_chat, response = await run(chat), await run(responses)
    assert response.choice == through_chat.choice
    assert response.usage == through_chat.usage
    assert response.state is not None


async def test_a_successor_resumes_a_response(responses: OpenAIEngine) -> None:
    whole = await run(responses)
    part = await run(responses, until=3)
    rest = await run(responses, prior_of(part, part.state))
    assert choices_of([*part.deltas, *rest.deltas])[0] == whole.choice
    assert rest.usage == whole.usage
    before = await run(responses, Prior((), True, part.state, None))
    assert before.choice == whole.choice, "one without output is read from its start"
    assert before.state is None


async def test_a_response_is_cancelled(responses: OpenAIEngine, server: str) -> None:
    part = await run(responses, until=1)
    assert part.state is not None
    await responses.cancel(part.state)
    async with aiohttp.ClientSession() as client, client.get(f"{server}/v1/responses/{part.state.id}") as found:
        assert (await found.json())["status"] == "cancelled"


async def test_a_response_that_the_server_does_not_know(responses: OpenAIEngine) -> None:
    part = await run(responses, until=2)
    assert part.state is not None
    unknown = replace(part.state, id="resp_0123456789abcdef")
    with pytest.raises(CannotContinue):
        await run(responses, prior_of(part, unknown))
    assert (await run(responses, Prior((), True, unknown))).choice.finish_reason is not None


async def test_an_answer_continues_from_its_text(chat: OpenAIEngine) -> None:
    whole = await run(chat)
    part = await run(chat, until=4)
    assert chat.resume_mode(ASK, prior_of(part, None)) is Resume.EXACT
    rest = await run(chat, prior_of(part, None))
    assert part.choice.text + rest.choice.text == whole.choice.text
    assert rest.usage == whole.usage
