"""What every engine must do: one suite over the simulated one, the real one, and one that relays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from benchmarks.upstream import Pace, serve
from shared.errors import InvalidRequest
from shared.events import Delta
from shared.job import Usage
from shared.registry import ModelSpec, OpenAIModel, OpenAIOptions, SimulatedModel, SimulatedOptions
from shared.sampling import GenerateRequest, Message, Sampling
from shared.stream import JobLog
from workers.engines.base import Engine, PromptInfo
from workers.engines.factory import make_engine
from workers.engines.simulated import SimulatedEngine

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    # torch and vLLM warn about themselves at import.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

SIMULATED = SimulatedModel(
    name="sim",
    engine="simulated",
    slots=8,
    # Without a rate a delta is one token, as far as its text goes.
    options=SimulatedOptions(ttft_ms=1, itl_ms=0, max_model_len=256, fail_on="<<fail>>"),
)
# An engine that relays cannot go on where it was cut: nobody but its upstream knows the tokens.
CONTINUE = ["simulated", pytest.param("vllm", marks=pytest.mark.vllm)]
that_continue = pytest.mark.parametrize("engine", CONTINUE, indirect=True)


@asynccontextmanager
async def started(model: ModelSpec) -> AsyncIterator[Engine]:
    engine = make_engine(model)
    await engine.start()
    yield engine
    await engine.stop()


@asynccontextmanager
async def relayed() -> AsyncIterator[OpenAIModel]:
    """A model of a simulated upstream in this process."""
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


@pytest.fixture(scope="module", params=[*CONTINUE, "openai"])
def engine(request: pytest.FixtureRequest) -> Engine:
    fixtures = {"simulated": "simulated_engine", "vllm": "real_engine", "openai": "relaying_engine"}
    engine: Engine = request.getfixturevalue(fixtures[request.param])
    return engine


def chat(content: str = "Repeat exactly: 😀🐦🌊 Füße, naïve", **sampling: Any) -> GenerateRequest:
    options = {"temperature": 0, "max_tokens": 24, **sampling}
    return GenerateRequest(messages=[Message(role="user", content=content)], sampling=Sampling(**options), priority=3)


async def outputs(
    engine: Engine, request: GenerateRequest, name: str = "r", so_far: list[Delta] | None = None
) -> tuple[PromptInfo, list[Delta]]:
    async with aclosing(engine.generate(name, request, so_far or [])) as items:
        made = [item async for item in items]
    if isinstance(made[-1], Usage):
        used = made.pop()
        assert isinstance(used, Usage)
        prompt: object = PromptInfo(used.prompt_tokens, used.cached_tokens)
        assert used.completion_tokens == sum(delta.tokens for delta in made if isinstance(delta, Delta))
    else:
        prompt = made.pop(0)
    assert isinstance(prompt, PromptInfo)
    assert all(isinstance(delta, Delta) for delta in made)
    return prompt, [delta for delta in made if isinstance(delta, Delta)]


async def rests(engine: Engine, request: GenerateRequest, logs: list[list[Delta]]) -> list[list[Delta]]:
    """What follows on each of these logs; all at once, which is faster than one after the other."""
    made = await asyncio.gather(*(outputs(engine, request, f"cut{number}", log) for number, log in enumerate(logs)))
    return [deltas for _, deltas in made]


def text(deltas: list[Delta], index: int = 0) -> str:
    return "".join(delta.text for delta in deltas if delta.index == index)


def as_logged(deltas: list[Delta]) -> list[Delta]:
    """As a log keeps them, flushed after each token."""
    log = JobLog("job", 1)
    for delta in deltas:
        log.delta(delta)
        log.seal()
    return [event.delta() for event in log.events]


async def test_prompt_first_then_text_to_its_end(engine: Engine) -> None:
    prompt, deltas = await outputs(engine, chat(ignore_eos=True))
    assert prompt.prompt_tokens > 4
    assert sum(delta.tokens for delta in deltas) == 24
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["length"]
    assert deltas[-1].finish_reason == "length"
    assert "\ufffd" not in text(deltas)
    assert engine.stats().requests == 0


async def test_raw_prompts(engine: Engine) -> None:
    request = GenerateRequest(prompt="The mill by the river", sampling=Sampling(temperature=0, max_tokens=5))
    prompt, deltas = await outputs(engine, request)
    assert 0 < prompt.prompt_tokens < 8
    assert text(deltas)


async def test_as_many_at_once_as_slots_each_as_if_alone(engine: Engine) -> None:
    requests = [chat(f"Write about {i}.", ignore_eos=True) for i in range(engine.slots)]
    alone = [text((await outputs(engine, request, f"a{i}"))[1]) for i, request in enumerate(requests)]
    together = await asyncio.gather(*(outputs(engine, request, f"t{i}") for i, request in enumerate(requests)))
    assert [text(deltas) for _, deltas in together] == alone


async def test_closing_aborts(engine: Engine) -> None:
    items = engine.generate("closed", chat(max_tokens=200, ignore_eos=True))
    async for item in items:
        if isinstance(item, Delta):
            assert engine.stats().requests == 1
            break
    await items.aclose()
    assert engine.stats().requests == 0


async def test_cancelling_aborts(engine: Engine) -> None:
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


@that_continue
async def test_a_cut_request_goes_on_as_if_uncut(engine: Engine) -> None:
    request = chat(max_tokens=40, ignore_eos=True)
    assert engine.goes_on(request)
    _, deltas = await outputs(engine, request)
    whole, logged = text(deltas), as_logged(deltas)
    cuts = (1, 2, 3, 5, 8, len(logged) - 1)
    for cut, rest in zip(cuts, await rests(engine, request, [logged[:cut] for cut in cuts]), strict=True):
        so_far = logged[:cut]
        assert text(so_far) + text(rest) == whole, f"cut after {cut} events"
        made = sum(delta.tokens for delta in [*so_far, *rest])
        assert (made, rest[-1].finish_reason) == (40, "length")


@that_continue
async def test_a_log_of_merged_deltas_can_be_cut_anywhere(engine: Engine) -> None:
    """Several tokens in one flush: the log must still end where its text does."""
    request = chat(max_tokens=40, ignore_eos=True)
    _, deltas = await outputs(engine, request)
    whole = text(deltas)
    for size in (2, 3):
        log = JobLog("job", 1)
        for number, delta in enumerate(deltas, 1):
            log.delta(delta)
            if number % size == 0:
                log.seal()
        logged = [event.delta() for event in log.events]
        cuts = range(1, len(logged) - 1, 3)
        for cut, rest in zip(cuts, await rests(engine, request, [logged[:cut] for cut in cuts]), strict=True):
            assert text(logged[:cut]) + text(rest) == whole, f"{size} tokens a flush, cut after {cut}"


@that_continue
async def test_a_cut_request_with_a_stop_string_goes_on_as_if_uncut(engine: Engine) -> None:
    _, plain = await outputs(engine, chat(max_tokens=40, ignore_eos=True))
    stop = text(plain)[-12:-4]
    request = chat(max_tokens=40, ignore_eos=True, stop=[stop, "never to be found"])
    assert engine.goes_on(request)
    _, deltas = await outputs(engine, request)
    whole, logged = text(deltas), as_logged(deltas)
    assert whole == text(plain)[: text(plain).index(stop)]
    cuts = range(1, len(logged))
    for cut, rest in zip(cuts, await rests(engine, request, [logged[:cut] for cut in cuts]), strict=True):
        so_far = logged[:cut]
        assert text(so_far) + text(rest) == whole, f"cut after {cut} events"
        assert rest[-1].finish_reason == "stop"


@that_continue
async def test_what_was_shown_is_always_the_text_of_whole_tokens(engine: Engine) -> None:
    _, plain = await outputs(engine, chat(max_tokens=40, ignore_eos=True))
    _, held = await outputs(engine, chat(max_tokens=40, ignore_eos=True, stop=["a stop string that never comes"]))
    boundaries = [len(text(plain[: i + 1])) for i in range(len(plain))]
    shown = 0
    for delta in held[:-1]:
        shown += len(delta.text)
        assert shown == 0 or shown in boundaries
    assert text(held) == text(plain)
    assert [t for d in held for t in d.token_ids] == [t for d in plain for t in d.token_ids]


async def test_stop_strings_end_the_text_and_are_not_in_it(engine: Engine) -> None:
    _, deltas = await outputs(engine, chat(ignore_eos=True))
    whole = text(deltas)
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    _, stopped = await outputs(engine, chat(ignore_eos=True, stop=[stop]))
    assert text(stopped) == whole[: whole.index(stop)]
    assert stopped[-1].finish_reason == "stop"


async def test_several_choices(engine: Engine) -> None:
    _, deltas = await outputs(engine, chat(n=3, temperature=1.0, max_tokens=8, seed=3, ignore_eos=True))
    for index in range(3):
        assert sum(delta.tokens for delta in deltas if delta.index == index) == 8
        assert [delta.finish_reason for delta in deltas if delta.index == index and delta.finish_reason] == ["length"]


async def test_without_max_tokens_the_context_is_the_limit(engine: Engine) -> None:
    request = GenerateRequest(prompt="mill " * 250, sampling=Sampling(temperature=0, ignore_eos=True))
    prompt, deltas = await outputs(engine, request)
    assert prompt.prompt_tokens + sum(delta.tokens for delta in deltas) == 256


@pytest.mark.parametrize("max_tokens", [None, 1])
async def test_what_does_not_fit_is_refused(engine: Engine, max_tokens: int | None) -> None:
    request = GenerateRequest(prompt="mill " * 300, sampling=Sampling(max_tokens=max_tokens))
    with pytest.raises(InvalidRequest, match="256 tokens"):
        await outputs(engine, request)
    assert engine.stats().requests == 0


async def test_a_simulated_engine_that_is_late_gives_what_is_due_at_once() -> None:
    """The text is that of one token at a time, cut at whole characters."""
    one_by_one = SimulatedEngine(SimulatedModel(name="m", engine="simulated", options=SimulatedOptions(itl_ms=0)))
    late = SimulatedEngine(SimulatedModel(name="m", engine="simulated", options=SimulatedOptions(itl_ms=0.01)))
    for stop in ([], ["never in it"]):
        request = chat(max_tokens=500, stop=stop)
        _, expected = await outputs(one_by_one, request)
        _, deltas = await outputs(late, request)
        assert len(deltas) < len(expected)
        assert text(deltas) == text(expected)
        assert [t for d in deltas for t in d.token_ids] == [t for d in expected for t in d.token_ids]
        assert not any("\ufffd" in delta.text for delta in deltas)
