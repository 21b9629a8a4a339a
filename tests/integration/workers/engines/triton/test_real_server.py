"""The triton engine before a real Triton server, whose model follows a script: see tests/support/triton_models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from shared.config.models.triton import TritonModel
from shared.domain.errors import InvalidRequest
from shared.domain.events import Delta, merge_deltas
from shared.domain.job import Usage
from shared.domain.request import GenerateRequest, Message, Sampling, StructuredOutputs
from tests.support.metrics import worker_metrics
from tests.support.triton_server import TritonServer, triton_server
from tests.support.vendors import triton as stand_in
from tests.support.waiting import eventually
from workers.engines.base import NO_PRIOR, CannotContinue, EngineError, Prior, UpstreamError
from workers.engines.factory import make_engine
from workers.engines.triton.engine import TritonEngine


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with triton_server(tmp_path_factory.mktemp("triton")) as server:
        yield server


@asynccontextmanager
async def engine_for(server: TritonServer, backend: str = "vllm", **options: Any) -> AsyncIterator[TritonEngine]:
    model = options.pop("model", server.model)
    entry = {"base_url": server.url, "backend": backend, "max_retries": 0, "read_timeout_s": 10, **options}
    spec = TritonModel.model_validate({"name": "m", "engine": "triton", "model": model, "options": entry})
    engine = make_engine(spec, worker_metrics("m"))
    assert isinstance(engine, TritonEngine)
    await engine.start()
    try:
        yield engine
        assert engine.stats().requests == 0
    finally:
        await engine.stop()


@pytest.fixture
async def engine(server: TritonServer) -> AsyncIterator[TritonEngine]:
    async with engine_for(server) as engine:
        yield engine


def ask(script: dict[str, Any] | str, **sampling: Any) -> GenerateRequest:
    prompt = script if isinstance(script, str) else json.dumps(script)
    return GenerateRequest(prompt=prompt, sampling=Sampling(**{"max_tokens": 50, **sampling}))


async def run(
    engine: TritonEngine, request: GenerateRequest, deltas: list[Delta] | None = None, prior: Prior = NO_PRIOR
) -> tuple[Delta, Any]:
    """The answer in one delta, and its usage. `deltas` collects the output even if the request fails."""
    deltas, usage = [] if deltas is None else deltas, None
    async with aclosing(engine.generate("job-1", request, prior)) as items:
        async for item in items:
            if isinstance(item, Delta):
                deltas.append(item)
            else:
                usage = item
    return merge_deltas(deltas), usage


async def report(engine: TritonEngine) -> Any:
    """What the model has seen."""
    answer, _ = await run(engine, ask({"report": True}))
    return json.loads(answer.text)


async def test_an_answer(engine: TritonEngine) -> None:
    answer, usage = await run(engine, ask({"pieces": ["né", "e 😀", 'ü 漢字 "\\\n\x00']}))
    assert (answer.text, answer.finish_reason, answer.tokens) == ('née 😀ü 漢字 "\\\n\x00', "stop", 3)
    assert usage == Usage(7, 0, 3)


async def test_an_answer_that_was_cut_by_its_limit(server: TritonServer, engine: TritonEngine) -> None:
    answer, _ = await run(engine, ask({"pieces": ["a", "b"], "finish": "length"}))
    assert answer.finish_reason == "length"
    async with engine_for(server, "tensorrtllm") as counting:
        answer, usage = await run(counting, ask({"pieces": ["a", "b"]}, max_tokens=2))
        assert (answer.finish_reason, usage) == ("length", Usage(7, 0, 2))


@pytest.mark.parametrize("backend", ["vllm", "tensorrtllm", "python"])
async def test_characters_that_the_model_cuts(server: TritonServer, backend: str) -> None:
    async with engine_for(server, backend) as engine:
        answer, _ = await run(engine, ask({"pieces": ["née 😀 漢字"], "bytes": True}))
    assert answer.text == "née 😀 漢字"


async def test_a_text_that_each_event_repeats(server: TritonServer) -> None:
    async with engine_for(server, "python", output="cumulative") as engine:
        answer, _ = await run(engine, ask({"pieces": ["née 😀", " 漢字"], "bytes": True, "cumulative": True}))
    assert answer.text == "née 😀 漢字"


async def test_parameters_reach_the_model_as_inputs_of_their_type(server: TritonServer) -> None:
    async with engine_for(server, "tensorrtllm", inputs={"lora": "a", "beam": 2}) as engine:
        await run(engine, ask("hello", temperature=0.5, seed=-1, stop=["END", "STOP"]))
        seen = await report(engine)
    assert seen["inputs"] == {
        "text_input": "hello",
        "stream": True,
        "exclude_input_in_output": True,
        "return_num_input_tokens": True,
        "max_tokens": 50,
        "temperature": 0.5,
        "seed": 2**64 - 1,
        "stop_words": ["END", "STOP"],
    }
    assert seen["parameters"] == {"lora": "a", "beam": 2}, "not inputs of this model"


async def test_vllms_sampling_parameters_reach_the_model(engine: TritonEngine) -> None:
    await run(engine, ask("hello", temperature=0.5, stop=["END"]))
    sampling = (await report(engine))["inputs"]["sampling_parameters"]
    assert json.loads(sampling) == {"temperature": 0.5, "stop": ["END"], "max_tokens": 50}


async def test_a_stop_string_ends_the_answer_and_stops_the_model(server: TritonServer) -> None:
    async with engine_for(server, "python") as engine:
        before = (await report(engine))["cancelled"]
        answer, _ = await run(engine, ask({"pieces": ["a E", "ND", " b"], "endless": True}, stop=["END"]))
        assert (answer.text, answer.finish_reason, answer.stop_reason) == ("a ", "stop", "END")

        async def is_cancelled() -> bool:
            return bool((await report(engine))["cancelled"] == before + 1)

        await eventually(is_cancelled, "the model is cancelled")


async def test_a_cancel_reaches_the_model(engine: TritonEngine) -> None:
    before = (await report(engine))["cancelled"]
    items = engine.generate("job-1", ask({"pieces": ["a"], "endless": True}))
    async for item in items:
        assert isinstance(item, Delta)
        break
    await items.aclose()

    async def is_cancelled() -> bool:
        return bool((await report(engine))["cancelled"] == before + 1)

    await eventually(is_cancelled, "the model is cancelled")


async def test_a_slow_first_byte(engine: TritonEngine) -> None:
    before = (await report(engine))["requests"]
    answer = asyncio.create_task(run(engine, ask({"pieces": ["late"], "gate": "slow"})))

    async def has_arrived() -> bool:
        return bool((await report(engine))["requests"] > before)

    await eventually(has_arrived, "the request is with the model")
    assert not answer.done()
    await run(engine, ask({"open": "slow"}))
    delta, _ = await answer
    assert delta.text == "late"


async def test_an_error_before_the_first_token(engine: TritonEngine) -> None:
    script = {"pieces": [], "fail_after": 0, "message": "out of memory at http://10.1.2.3:8000/v2 in /opt/model.py"}
    with pytest.raises(EngineError, match="out of memory") as caught:
        await run(engine, ask(script))
    assert "10.1.2.3" not in str(caught.value)
    assert "/opt/model.py" not in str(caught.value)


async def test_an_error_after_the_first_token(engine: TritonEngine) -> None:
    deltas: list[Delta] = []
    with pytest.raises(EngineError, match="boom"):
        await run(engine, ask({"pieces": ["a", "b"], "fail_after": 1, "message": "boom"}), deltas)
    assert "".join(delta.text for delta in deltas) in ("", "a")


async def test_a_model_that_is_lost_is_tried_again(server: TritonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.engines.upstream.backoff.BACKOFF_S", (0.0, 0.0))
    async with engine_for(server, max_retries=1) as engine:
        before = (await report(engine))["requests"]
        with pytest.raises(EngineError, match="not healthy"):
            await run(engine, ask({"pieces": [], "fail_after": 0, "message": "Stub process 'm' is not healthy."}))
        assert (await report(engine))["requests"] == before + 2


async def test_an_unknown_model_and_an_unknown_version(server: TritonServer) -> None:
    async with engine_for(server, model="missing") as engine:
        with pytest.raises(UpstreamError, match="unknown model: 'missing'"):
            await run(engine, ask("hello"))
    async with engine_for(server, version="7") as engine:
        with pytest.raises(UpstreamError, match="version 7"):
            await run(engine, ask("hello"))


async def test_an_input_that_the_model_cannot_take(server: TritonServer) -> None:
    async with engine_for(server, inputs={"max_tokens": "many"}, backend="vllm") as engine:
        with pytest.raises(InvalidRequest, match="Unable to parse"):
            await run(engine, ask("hello"))
    async with engine_for(server, text_input="prompt") as engine:
        with pytest.raises(EngineError, match="text_input is missing"):
            await run(engine, ask("hello"))


async def test_a_conversation_is_rendered_here(server: TritonServer) -> None:
    async with engine_for(server, chat_template=str(stand_in.CHAT_TEMPLATE)) as engine:
        messages = [Message(role="developer", content="Be brief."), Message(role="user", content="Hello")]
        answer, _ = await run(engine, GenerateRequest(messages=messages))
    assert answer.text == "<|system|>Be brief.\n<|user|>Hello\n<|assistant|>"


def tokenizer_folder(folder: Path) -> Path:
    """A tokenizer for which a token is a word, and which puts `<s>` at the start as its chat template does."""
    tokenizer = Tokenizer(WordLevel({"?": 0, "<s>": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }} {% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "chat_template": template}))
    return folder


async def test_a_tokenizer_renders_and_counts_what_triton_does_not(server: TritonServer, tmp_path: Path) -> None:
    conversation = GenerateRequest(
        messages=[Message(role="user", content="Say it again"), Message(role="user", content="Sam")],
        sampling=Sampling(max_tokens=4),
    )
    async with engine_for(server, "python", tokenizer=str(tokenizer_folder(tmp_path)), max_model_len=100) as engine:
        answer, usage = await run(engine, conversation)
        assert answer.text == "Say it again Sam ", "the model's tokenizer adds the first token itself"
        assert (usage, answer.finish_reason) == (Usage(5, 0, 4), "length")
        await run(engine, conversation.model_copy(update={"sampling": Sampling()}))
        assert (await report(engine))["inputs"]["max_tokens"] == 95


@pytest.mark.parametrize("options", [{"tokenizer": "/missing"}, {"chat_template": "/missing"}])
async def test_a_file_that_cannot_be_read_is_named_at_the_start(server: TritonServer, options: Any) -> None:
    with pytest.raises(InvalidRequest, match=rf"models\.yaml: m\.options\.{next(iter(options))}: cannot be read"):
        async with engine_for(server, **options):
            pass


async def test_an_interrupted_answer_continues_after_its_text(engine: TritonEngine) -> None:
    prior = Prior([Delta(0, "The mill", unidentified=2), Delta(0, " turns", unidentified=1)])
    answer, usage = await run(engine, ask("Go on: ", min_tokens=5), prior=prior)
    assert answer.text == "Go on: The mill turns"
    sampling = json.loads((await report(engine))["inputs"]["sampling_parameters"])
    assert (sampling["max_tokens"], sampling["min_tokens"]) == (47, 2)
    assert usage == Usage(4, 0, 4), "what was emitted before is not part of the prompt"
    structured = ask("x").model_copy(update={"structured_outputs": StructuredOutputs(json_object=True)})
    with pytest.raises(CannotContinue):
        await run(engine, structured, prior=prior)


@pytest.mark.parametrize(
    ("pieces", "left"),
    [(["\u4f60\u597d\u5417"] * 10, 40), (["one two three four five ", "six seven eight nine ten "], 40)],
    ids=["Chinese", "several words in a piece"],
)
async def test_what_is_left_of_max_tokens(engine: TritonEngine, pieces: list[str], left: int) -> None:
    """The usage has the tokens as they were counted."""
    _, usage = await run(engine, ask("Go on: "), prior=Prior([Delta(0, piece, unidentified=1) for piece in pieces]))
    assert json.loads((await report(engine))["inputs"]["sampling_parameters"])["max_tokens"] == left
    assert usage.completion_tokens == len(pieces) + 1


async def test_the_stand_in_sends_the_bytes_of_the_real_server(server: TritonServer) -> None:
    script = {"pieces": ['née "\\\n', "b"], "fail_after": 1, "message": 'boom "\n'}
    body = {"text_input": json.dumps(script), "stream": True, "return_num_output_tokens": True}
    url = f"{server.url}/v2/models/{server.model}/generate_stream"
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
        real = await response.read()
        assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
    event = stand_in.event(num_output_tokens=1, text_output='née "\\\n').replace(b'"theirs"', b'"scripted"')
    assert real == event + stand_in.error_event('boom "\n')


@pytest.mark.long
async def test_sixteen_streams_at_once(engine: TritonEngine) -> None:
    pieces = [[f"{stream}:{piece} 😀" for piece in range(200)] for stream in range(16)]
    answers = await asyncio.gather(*(run(engine, ask({"pieces": texts, "bytes": True})) for texts in pieces))
    assert [answer.text for answer, _ in answers] == ["".join(texts) for texts in pieces]


@pytest.mark.long
async def test_a_model_that_is_loaded_again_is_waited_for(server: TritonServer) -> None:
    async with engine_for(server, max_retries=20) as engine, aiohttp.ClientSession() as session:
        repository = f"{server.url}/v2/repository/models/{server.model}"
        async with session.post(f"{repository}/unload") as response:
            assert response.status == 200
        answer = asyncio.create_task(run(engine, ask("hello")))

        async def is_refused() -> bool:
            async with session.get(f"{server.url}/v2/models/{server.model}/ready") as response:
                return response.status == 400

        await eventually(is_refused, "the model is unloaded")
        async with session.post(f"{repository}/load") as response:
            assert response.status == 200
        delta, _ = await answer
    assert delta.text == "hello"
