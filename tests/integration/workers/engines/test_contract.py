"""The contract of all engines: one suite for the simulated engine, vLLM, and a relaying engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from benchmarks.upstream import serve
from benchmarks.upstream_request import Pace
from shared.config.models.loader import ModelSpec
from shared.config.models.openai import OpenAIModel, OpenAIOptions
from shared.config.models.simulated import SimulatedModel, SimulatedOptions
from shared.domain.errors import InvalidRequest
from shared.domain.events import Delta
from shared.domain.job import Usage
from shared.domain.request import GenerateRequest, Message, Sampling
from tests.support.examples import LONG
from tests.support.metrics import worker_metrics
from workers.engines.base import Engine, Prior, PromptInfo
from workers.engines.factory import make_engine
from workers.engines.simulated.engine import SimulatedEngine
from workers.execution.log_writer import LogBuffer

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    # torch and vLLM warn about themselves at import.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

SIMULATED = SimulatedModel(
    name="sim",
    engine="simulated",
    slots=8,
    # Without a rate, each delta is one token or the tokens of one character.
    options=SimulatedOptions(ttft_ms=1, itl_ms=0, max_model_len=256, fail_on="<<fail>>"),
)
# A relaying engine cannot resume, because it does not know the tokens.
RESUMING = ["simulated", pytest.param("vllm", marks=pytest.mark.vllm)]
resuming_engines = pytest.mark.parametrize("engine", RESUMING, indirect=True)


@asynccontextmanager
async def started(model: ModelSpec) -> AsyncIterator[Engine]:
    engine = make_engine(model, worker_metrics(model.name))
    await engine.start()
    yield engine
    await engine.stop()


@asynccontextmanager
async def relayed() -> AsyncIterator[OpenAIModel]:
    """A model relayed to a simulated upstream in this process."""
    server, _ = await serve(Pace(ttft_ms=1, itl_ms=1, default_tokens=1000, max_model_len=256), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    yield OpenAIModel(name="up", engine="openai", model="sim", slots=8, options=OpenAIOptions(base_url=url))
    server.close()
    await server.wait_closed()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def simulated_engine() -> AsyncIterator[Engine]:
    async with started(SIMULATED) as engine:
        yield engine


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def relaying_engine() -> AsyncIterator[Engine]:
    async with relayed() as model, started(model) as engine:
        yield engine


@pytest.fixture(scope="module", params=[*RESUMING, "openai"])
def engine(request: pytest.FixtureRequest) -> Engine:
    fixtures = {"simulated": "simulated_engine", "vllm": "real_engine", "openai": "relaying_engine"}
    engine: Engine = request.getfixturevalue(fixtures[request.param])
    return engine


def chat(content: str = "Repeat exactly: 😀🐦🌊 Füße, naïve", **sampling: Any) -> GenerateRequest:
    options = {"temperature": 0, "max_tokens": 24, **sampling}
    return GenerateRequest(messages=[Message(role="user", content=content)], sampling=Sampling(**options), priority=3)


async def outputs(
    engine: Engine, request: GenerateRequest, name: str = "r", prior: list[Delta] | None = None
) -> tuple[PromptInfo, list[Delta]]:
    async with aclosing(engine.generate(name, request, Prior(prior or []))) as items:
        received = [item async for item in items]
    if isinstance(received[-1], Usage):
        usage = received.pop()
        assert isinstance(usage, Usage)
        prompt: object = PromptInfo(usage.prompt_tokens, usage.cached_tokens)
        assert usage.completion_tokens == sum(delta.tokens for delta in received if isinstance(delta, Delta))
    else:
        prompt = received.pop(0)
    assert isinstance(prompt, PromptInfo)
    assert all(isinstance(delta, Delta) for delta in received)
    return prompt, [delta for delta in received if isinstance(delta, Delta)]


async def resumed(engine: Engine, request: GenerateRequest, logs: list[list[Delta]]) -> list[list[Delta]]:
    """The deltas that follow each of these logs. All requests run at once, which is faster than one after another."""
    received = await asyncio.gather(*(outputs(engine, request, f"cut{number}", log) for number, log in enumerate(logs)))
    return [deltas for _, deltas in received]


def text(deltas: list[Delta], index: int = 0) -> str:
    return "".join(delta.text for delta in deltas if delta.index == index)


def as_logged(deltas: list[Delta]) -> list[Delta]:
    """The deltas of a log that is flushed after each token."""
    log = LogBuffer("job", 1, worker_metrics())
    for delta in deltas:
        log.delta(delta)
        log.seal()
    return [event.delta() for event in log.events]


async def test_prompt_info_then_text(engine: Engine) -> None:
    prompt, deltas = await outputs(engine, chat(ignore_eos=True))
    assert prompt.prompt_tokens > 4
    assert sum(delta.tokens for delta in deltas) == 24
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["length"]
    assert deltas[-1].finish_reason == "length"
    assert "\ufffd" not in text(deltas)
    assert engine.stats().requests == 0


async def test_raw_prompt(engine: Engine) -> None:
    request = GenerateRequest(prompt="The mill by the river", sampling=Sampling(temperature=0, max_tokens=5))
    prompt, deltas = await outputs(engine, request)
    assert 0 < prompt.prompt_tokens < 8
    assert text(deltas)


async def test_concurrent_requests_do_not_affect_each_other(engine: Engine) -> None:
    requests = [chat(f"Write about {i}.", ignore_eos=True) for i in range(engine.slots)]
    together = await asyncio.gather(*(outputs(engine, request, f"t{i}") for i, request in enumerate(requests)))
    for i in range(0, engine.slots, 1 if LONG else 3):
        _, alone = await outputs(engine, requests[i], f"a{i}")
        assert text(together[i][1]) == text(alone)


async def test_closing_the_generator_aborts(engine: Engine) -> None:
    items = engine.generate("closed", chat(max_tokens=200, ignore_eos=True))
    async for item in items:
        if isinstance(item, Delta):
            assert engine.stats().requests == 1
            break
    await items.aclose()
    assert engine.stats().requests == 0


async def test_cancelling_the_task_aborts(engine: Engine) -> None:
    begun = asyncio.Event()

    async def consume() -> None:
        async with aclosing(engine.generate("cancelled", chat(max_tokens=200, ignore_eos=True))) as items:
            async for _ in items:
                begun.set()

    task = asyncio.create_task(consume())
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert engine.stats().requests == 0


@resuming_engines
async def test_resume(engine: Engine) -> None:
    request = chat(max_tokens=40, ignore_eos=True)
    assert engine.resume_mode(request)
    _, deltas = await outputs(engine, request)
    complete, logged = text(deltas), as_logged(deltas)
    cuts = (1, 2, 3, 5, 8, len(logged) - 1)
    for cut, rest in zip(cuts, await resumed(engine, request, [logged[:cut] for cut in cuts]), strict=True):
        prior = logged[:cut]
        assert text(prior) + text(rest) == complete, f"interrupted after {cut} events"
        tokens = sum(delta.tokens for delta in [*prior, *rest])
        assert (tokens, rest[-1].finish_reason) == (40, "length")


@resuming_engines
async def test_resume_from_a_log_with_several_tokens_per_flush(engine: Engine) -> None:
    """The log must still end at a token boundary."""
    request = chat(max_tokens=40, ignore_eos=True)
    _, deltas = await outputs(engine, request)
    complete = text(deltas)
    for size in (2, 3):
        log = LogBuffer("job", 1, worker_metrics())
        for number, delta in enumerate(deltas, 1):
            log.delta(delta)
            if number % size == 0:
                log.seal()
        logged = [event.delta() for event in log.events]
        cuts = range(1, len(logged) - 1, 3)
        for cut, rest in zip(cuts, await resumed(engine, request, [logged[:cut] for cut in cuts]), strict=True):
            assert text(logged[:cut]) + text(rest) == complete, (
                f"{size} tokens per flush, interrupted after {cut} events"
            )


@resuming_engines
async def test_resume_with_stop_strings(engine: Engine) -> None:
    _, plain = await outputs(engine, chat(max_tokens=40, ignore_eos=True))
    stop = text(plain)[-12:-4]
    request = chat(max_tokens=40, ignore_eos=True, stop=[stop, "does not occur"])
    assert engine.resume_mode(request)
    _, deltas = await outputs(engine, request)
    complete, logged = text(deltas), as_logged(deltas)
    assert complete == text(plain)[: text(plain).index(stop)]
    cuts = range(1, len(logged))
    for cut, rest in zip(cuts, await resumed(engine, request, [logged[:cut] for cut in cuts]), strict=True):
        prior = logged[:cut]
        assert text(prior) + text(rest) == complete, f"interrupted after {cut} events"
        assert rest[-1].finish_reason == "stop"


@resuming_engines
async def test_text_ends_at_token_boundaries(engine: Engine) -> None:
    _, plain = await outputs(engine, chat(max_tokens=40, ignore_eos=True))
    _, held = await outputs(engine, chat(max_tokens=40, ignore_eos=True, stop=["a stop string that does not occur"]))
    boundaries = [len(text(plain[: i + 1])) for i in range(len(plain))]
    length = 0
    for delta in held[:-1]:
        length += len(delta.text)
        assert length == 0 or length in boundaries
    assert text(held) == text(plain)
    assert [t for d in held for t in d.token_ids] == [t for d in plain for t in d.token_ids]


async def test_stop_strings_end_the_text_and_are_excluded(engine: Engine) -> None:
    _, deltas = await outputs(engine, chat(ignore_eos=True))
    complete = text(deltas)
    stop = complete[len(complete) // 2 : len(complete) // 2 + 3]
    _, stopped = await outputs(engine, chat(ignore_eos=True, stop=[stop]))
    assert text(stopped) == complete[: complete.index(stop)]
    assert stopped[-1].finish_reason == "stop"


async def test_several_choices(engine: Engine) -> None:
    _, deltas = await outputs(engine, chat(n=3, temperature=1.0, max_tokens=8, seed=3, ignore_eos=True))
    for index in range(3):
        assert sum(delta.tokens for delta in deltas if delta.index == index) == 8
        assert [delta.finish_reason for delta in deltas if delta.index == index and delta.finish_reason] == ["length"]


async def test_context_limits_the_answer_without_max_tokens(engine: Engine) -> None:
    request = GenerateRequest(prompt="mill " * 250, sampling=Sampling(temperature=0, ignore_eos=True))
    prompt, deltas = await outputs(engine, request)
    assert prompt.prompt_tokens + sum(delta.tokens for delta in deltas) == 256


@pytest.mark.parametrize("max_tokens", [None, 1])
async def test_prompt_that_does_not_fit_is_refused(engine: Engine, max_tokens: int | None) -> None:
    request = GenerateRequest(prompt="mill " * 300, sampling=Sampling(max_tokens=max_tokens))
    with pytest.raises(InvalidRequest, match="256 tokens"):
        await outputs(engine, request)
    assert engine.stats().requests == 0


async def test_late_simulated_engine_returns_all_due_tokens() -> None:
    """The text is the same as one token at a time, and ends at whole characters."""
    one_by_one = SimulatedEngine(SimulatedModel(name="m", engine="simulated", options=SimulatedOptions(itl_ms=0)))
    late = SimulatedEngine(SimulatedModel(name="m", engine="simulated", options=SimulatedOptions(itl_ms=0.01)))
    for stop in ([], ["does not occur"]):
        request = chat(max_tokens=500, stop=stop)
        _, expected = await outputs(one_by_one, request)
        _, deltas = await outputs(late, request)
        assert len(deltas) < len(expected)
        assert text(deltas) == text(expected)
        assert [t for d in deltas for t in d.token_ids] == [t for d in expected for t in d.token_ids]
        assert not any("\ufffd" in delta.text for delta in deltas)
