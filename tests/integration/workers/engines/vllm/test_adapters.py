"""LoRA adapters on a real engine: one batch with several, evictions, resuming, and adapters that cannot be loaded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from shared.config.models.adapters import Adapter
from shared.config.models.vllm import VllmModel
from shared.domain.errors import InvalidRequest
from shared.domain.events import Delta
from shared.domain.request import GenerateRequest, Message, Sampling
from shared.telemetry.metrics import Metrics
from tests.support.adapters import make_adapter
from tests.support.metrics import worker_metrics
from tests.support.real_engine import SMOLLM2
from tests.support.vllm_forks import forked_engines
from workers.engines.base import EngineError, Prior

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.vllm,
    # torch and vLLM warn about themselves at import.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
QUESTION = "What is the capital of France, and which river flows through it?"
TOKENS = 24


def with_adapters(folders: dict[str, Path], **options: Any) -> VllmModel:
    """The model with adapters in these folders."""
    model = SMOLLM2.model_copy(update={"options": {**SMOLLM2.options, **options}})
    return model.with_adapters(
        [model.as_adapter(name, "", Adapter.of(model.name, str(folder))) for name, folder in folders.items()]
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three adapters: of two ranks, and the third with a chat template of its own."""
    root = tmp_path_factory.mktemp("adapters")
    third = make_adapter(root / "third", 3)
    (third / "chat_template.jinja").write_text("{{ messages[-1].content }} =")
    return {
        "first": make_adapter(root / "first", 1),
        "second": make_adapter(root / "second", 2, rank=8),
        "third": third,
    }


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return worker_metrics(SMOLLM2.name, "first", "second", "third")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folders: dict[str, Path], metrics: Metrics) -> AsyncIterator[Any]:
    """An engine that has at most two of the three adapters in memory."""
    from workers.engines.vllm.engine import VllmEngine

    engine = VllmEngine(with_adapters(folders, max_loras=2), metrics)
    try:
        with forked_engines():
            await engine.start()
        yield engine
    finally:
        await engine.stop()


def request(adapter: str | None, tokens: int = TOKENS, **fields: Any) -> GenerateRequest:
    messages = [Message(role="user", content=QUESTION)]
    sampling = Sampling(temperature=0, max_tokens=tokens, ignore_eos=True)
    return GenerateRequest(messages=messages, sampling=sampling, adapter=adapter, **fields)


async def deltas(engine: Any, asked: GenerateRequest, prior: list[Delta] | None = None, job: str = "j") -> list[Delta]:
    async with aclosing(engine.generate(f"{job}-1", asked, Prior(prior or []))) as items:
        return [item async for item in items if isinstance(item, Delta)]


def tokens_of(found: list[Delta]) -> list[int]:
    return [token for delta in found for token in delta.token_ids]


async def tokens(engine: Any, adapter: str | None, job: str = "j") -> list[int]:
    return tokens_of(await deltas(engine, request(adapter), job=job))


def loads(metrics: Metrics, name: str, result: str = "loaded") -> float:
    """How often an adapter was loaded, or failed to load."""
    return float(metrics.adapter_loads.labels(name, result)._value.get())


def evictions(metrics: Metrics, name: str) -> float:
    return float(metrics.adapter_evictions.labels(name)._value.get())


async def test_one_batch_has_the_base_and_several_adapters(engine: Any) -> None:
    alone = {name: await tokens(engine, name) for name in (None, "first", "second")}
    assert len({tuple(found) for found in alone.values()}) == 3
    together = await asyncio.gather(
        *(tokens(engine, name, f"{name}-{number}") for number in range(2) for name in alone)
    )
    assert together == [*alone.values()] * 2


async def test_the_base_answers_as_without_adapters(engine: Any, real_base: list[int]) -> None:
    await tokens(engine, "first")
    await tokens(engine, "second")
    assert await tokens(engine, None) == real_base


@pytest.fixture(scope="module")
def real_base() -> list[int]:
    """What the base answers, by the library that the model comes from."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2.model)
    model = AutoModelForCausalLM.from_pretrained(SMOLLM2.model)
    conversation = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(
        conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
    return list(output[0, prompt["input_ids"].shape[1] :].tolist())


async def test_the_least_recently_used_adapter_is_evicted_and_loaded_again(engine: Any, metrics: Metrics) -> None:
    first = await tokens(engine, "first")
    await tokens(engine, "second")
    await tokens(engine, "first")
    names = ("first", "second", "third")

    def counts() -> dict[str, tuple[float, float]]:
        return {name: (loads(metrics, name), evictions(metrics, name)) for name in names}

    def changes(before: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        return {name: (now[0] - before[name][0], now[1] - before[name][1]) for name, now in counts().items()}

    before = counts()
    await tokens(engine, "third")  # instead of the second, which was used before the first
    assert changes(before) == {"first": (0, 0), "second": (0, 1), "third": (1, 0)}
    before = counts()
    await tokens(engine, "second")  # instead of the first
    assert await tokens(engine, "first") == first
    assert changes(before) == {"first": (1, 1), "second": (1, 0), "third": (0, 1)}


async def test_requests_wait_for_an_adapter_that_has_no_room(engine: Any) -> None:
    """Three adapters at once, of which two may be in use."""
    alone = {name: await tokens(engine, name) for name in ("first", "second", "third")}
    names = ["first", "second", "third"] * 2
    together = await asyncio.gather(*(tokens(engine, name, f"{name}-{at}") for at, name in enumerate(names)))
    assert together == [alone[name] for name in names]


@pytest.mark.parametrize("adapter", ["first", "second"])
async def test_an_interrupted_answer_resumes_with_its_adapter(engine: Any, adapter: str) -> None:
    whole = await deltas(engine, request(adapter))
    rest = await deltas(engine, request(adapter), whole[:7], job="again")
    assert tokens_of(rest) == tokens_of(whole[7:])


async def test_prefixes_of_adapters_are_apart(engine: Any) -> None:
    """A prompt that the base has computed is not in the cache for an adapter."""
    prompt = "The mill by the river turns. " * 25  # more than a block

    async def cached(adapter: str | None) -> int:
        sampling = Sampling(temperature=0, max_tokens=1)
        asked = GenerateRequest(prompt=prompt, sampling=sampling, adapter=adapter)
        async with aclosing(engine.generate("prefix-1", asked)) as items:
            return int((await anext(items)).cached_tokens)

    for adapter in (None, "first", "second"):
        assert [await cached(adapter), await cached(adapter) > 0] == [0, True]


async def test_an_adapters_own_chat_template_renders_its_prompts(engine: Any) -> None:
    async with aclosing(engine.generate("template-1", request("third"))) as items:
        rendered = (await anext(items)).prompt_tokens
    async with aclosing(engine.generate("template-1", request("first"))) as items:
        assert 0 < rendered < (await anext(items)).prompt_tokens


async def test_a_broken_adapter_fails_its_requests_and_nothing_else(
    engine: Any, folders: dict[str, Path], metrics: Metrics
) -> None:
    weights = folders["third"] / "adapter_model.safetensors"
    content = weights.read_bytes()
    others = {name: await tokens(engine, name) for name in (None, "first", "second")}  # which evicts the third
    failed = loads(metrics, "third", "failed")
    try:
        for broken in (content[:1000], make_adapter(folders["third"].parent / "fourth", 4)):
            if isinstance(broken, Path):  # other weights than those that the fingerprint stands for
                broken = (broken / "adapter_model.safetensors").read_bytes()
            weights.write_bytes(broken)
            asked = [tokens(engine, name, f"{name}-b") for name in (None, "first", "third", "second")]
            results: list[Any] = await asyncio.gather(*asked, return_exceptions=True)
            error = results.pop(2)
            assert isinstance(error, EngineError)
            assert "the adapter 'third' cannot be loaded: " in error.message
            assert results == [others[None], others["first"], others["second"]]
            assert not engine.dead
        assert "its files have changed since the worker started" in error.message
        assert loads(metrics, "third", "failed") == failed + 2
    finally:
        weights.write_bytes(content)


def unfit(folder: Path, module: str, size: int, layer: str = "model.layers.0") -> Path:
    """An adapter of one module, whose input and output have this size."""
    import torch
    from safetensors.torch import save_file

    make_adapter(folder, 1)
    name = f"base_model.model.{layer}.{module}.lora_"
    weights = {f"{name}A.weight": torch.ones(4, size), f"{name}B.weight": torch.ones(size, 4)}
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(("module", "size"), [("mlp.magic_proj", 576), ("self_attn.q_proj", 1024)])
async def test_an_adapter_with_modules_that_the_base_does_not_have(
    engine: Any, folders: dict[str, Path], tmp_path: Path, metrics: Metrics, module: str, size: int
) -> None:
    """It is refused when the worker starts, because each adapter is loaded once then."""
    from workers.engines.vllm.adapters import LoadedAdapters

    models = with_adapters({**folders, "bad": unfit(tmp_path / "bad", module, size)}).adapters
    base = await tokens(engine, None)
    loaded = LoadedAdapters(engine._llm, models, metrics, on_cpu=True)
    for _ in range(2):  # an adapter that was loaded in part does not answer later
        with pytest.raises(EngineError, match="the adapter 'bad' cannot be loaded: "):
            await loaded.acquire("bad")
    assert await tokens(engine, None) == base


async def test_an_adapter_for_a_smaller_model(
    engine: Any, folders: dict[str, Path], tmp_path: Path, metrics: Metrics
) -> None:
    from workers.engines.vllm.adapters import LoadedAdapters

    models = with_adapters({**folders, "bad": unfit(tmp_path / "bad", "self_attn.q_proj", 64)}).adapters
    with pytest.raises(InvalidRequest) as caught:
        await LoadedAdapters(engine._llm, models, metrics, on_cpu=True).check()
    assert caught.value.message == (
        "models.yaml: bad.adapter: its weights are for a hidden size of 64, but that of its base is 576"
    )


@pytest.mark.parametrize("prefix", ["model.language_model.layers.0", "model.layers.30"])
async def test_an_adapter_for_layers_that_the_base_does_not_have(
    engine: Any, folders: dict[str, Path], tmp_path: Path, metrics: Metrics, prefix: str
) -> None:
    """Of another class of models, or of one with more layers: vLLM loads it, and answers as the base does."""
    from workers.engines.vllm.adapters import LoadedAdapters

    folder = unfit(tmp_path / "bad", "self_attn.o_proj", 576, prefix)
    models = with_adapters({**folders, "bad": folder}).adapters
    with pytest.raises(InvalidRequest) as caught:
        await LoadedAdapters(engine._llm, models, metrics, on_cpu=True).check()
    assert caught.value.message == (
        "models.yaml: bad.adapter: its base has no layers for its weights, so it would answer as its base does; they"
        f" are for {prefix}.self_attn.o_proj"
    )


async def test_weights_of_an_adapter_that_are_left_out_are_logged(
    engine: Any, folders: dict[str, Path], tmp_path: Path, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.torch import load_file, save_file

    from workers.engines.vllm.adapters import LoadedAdapters

    file = make_adapter(tmp_path / "deeper", 5) / "adapter_model.safetensors"
    weights = load_file(file)
    more = {
        name.replace("layers.29.", "layers.30."): tensor.clone()
        for name, tensor in weights.items()
        if "layers.29." in name
    }
    save_file(weights | more, file)
    models = with_adapters({**folders, "deeper": file.parent}).adapters
    loaded = LoadedAdapters(engine._llm, models, metrics, on_cpu=True)
    await loaded.check()
    await loaded._unload("deeper")  # its number is that of other tests' adapters
    (record,) = [record for record in caplog.records if "is not applied to" in record.message]
    assert record.message == (
        "model=deeper is not applied to 3 modules: model.layers.30.mlp.down_proj, model.layers.30.self_attn.q_proj,"
        " model.layers.30.self_attn.v_proj"
    )


async def test_fingerprints(engine: Any, folders: dict[str, Path]) -> None:
    prints = engine.adapter_fingerprints
    assert len({engine.fingerprint, *prints.values()}) == 4
    again = with_adapters(folders, max_loras=2)
    assert prints == {adapter.name: adapter.fingerprint for adapter in again.adapters}, "the dtype is set"


class TestStart:
    """What is wrong with an adapter is found before the model is loaded."""

    async def refusal(self, model: VllmModel) -> str:
        from workers.engines.vllm.engine import VllmEngine

        with pytest.raises(InvalidRequest) as caught:
            await VllmEngine(model, worker_metrics(model.name)).start()
        return caught.value.message

    @pytest.mark.parametrize(
        ("remove", "message"),
        [
            ("adapter_config.json", "has no adapter_config.json; an adapter is a folder that PEFT has saved"),
            ("adapter_model.safetensors", "has no weights; their file is one of adapter_model.safetensors, "),
        ],
    )
    async def test_a_missing_file(self, tmp_path: Path, remove: str, message: str) -> None:
        folder = make_adapter(tmp_path / "x", 1)
        (folder / remove).unlink()
        assert f"models.yaml: bad.adapter: {folder} {message}" in await self.refusal(with_adapters({"bad": folder}))

    async def test_a_missing_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "none"
        model = with_adapters({"bad": folder})
        assert await self.refusal(model) == f"models.yaml: bad.adapter: there is no folder {folder}"

    async def test_a_missing_folder_with_a_relative_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is relative to the folder in which the process was started, which the message shows."""
        monkeypatch.chdir(tmp_path)
        model = with_adapters({"bad": Path("adapters") / "v2" / "none"})
        folder = tmp_path / "adapters" / "v2" / "none"
        assert await self.refusal(model) == f"models.yaml: bad.adapter: there is no folder {folder}"

    @pytest.mark.parametrize("config", ["{", "[]", "{}", '{"r": "many"}'])
    async def test_a_bad_configuration(self, tmp_path: Path, config: str) -> None:
        folder = make_adapter(tmp_path / "x", 1)
        (folder / "adapter_config.json").write_text(config)
        message = await self.refusal(with_adapters({"bad": folder}))
        assert message.startswith(
            f"models.yaml: bad.adapter: {folder / 'adapter_config.json'} is not a LoRA configuration: "
        )

    async def test_a_rank_above_the_limit(self, tmp_path: Path) -> None:
        folder = make_adapter(tmp_path / "x", 1, rank=12)
        message = await self.refusal(with_adapters({"bad": folder}, max_lora_rank=8))
        assert message == (
            "models.yaml: bad.adapter: its rank is 12, but 8 is the most; use another adapter, or set"
            " options.max_lora_rank of its base to more"
        )

    async def test_options_that_turn_adapters_off(self, folders: dict[str, Path]) -> None:
        message = await self.refusal(with_adapters(folders, enable_lora=False))
        assert message.startswith("models.yaml: smollm2.options.enable_lora: must not be false, because first and")

    def test_options_are_derived(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        from workers.engines.vllm.adapters import adapter_options

        folders = {"a": make_adapter(tmp_path / "a", 1, rank=12), "b": make_adapter(tmp_path / "b", 2)}
        model = with_adapters(folders)
        assert adapter_options(model, [], on_cpu=True) == {}
        derived: dict[str, Any] = {"enable_lora": True, "max_loras": 2, "max_cpu_loras": 2, "max_lora_rank": 16}
        derived |= {"worker_extension_cls": "workers.engines.vllm.applied_modules.AppliedModules"}
        assert adapter_options(model, model.adapters, on_cpu=False) == derived
        more = {"max_loras": 3, "max_cpu_loras": 3}
        assert adapter_options(model, model.adapters, on_cpu=True) == derived | more, "the last slot stays empty"
        chosen: dict[str, Any] = {
            "max_loras": 1,
            "max_cpu_loras": 5,
            "max_lora_rank": 32,
            "worker_extension_cls": "a.B",
        }
        model = with_adapters(folders, **chosen)
        assert adapter_options(model, model.adapters, on_cpu=False) == {"enable_lora": True, **chosen}
        assert not caplog.records, "they were made for this model"
        config = folders["a"] / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "org/Llama-3-8B"}))
        adapter_options(model, model.adapters, on_cpu=False)
        assert "a is an adapter for org/Llama-3-8B, but its base smollm2 is" in caplog.text
