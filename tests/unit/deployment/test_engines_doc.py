"""docs/engines.md shows what the code has, and the example file loads."""

from __future__ import annotations

import re
from pathlib import Path

from shared.config.models.anthropic import AnthropicModel
from shared.config.models.loader import ENGINES, load_registry
from shared.config.models.openai import OpenAIModel
from shared.config.models.presets import PRESETS
from shared.config.models.vllm import VllmModel
from tests.support.engine_tables import EXAMPLES, PAGE, all_examples, row_name, with_tables


def test_the_tables_are_those_of_the_code(tmp_path: Path) -> None:
    page = PAGE.read_text()
    assert with_tables(page, tmp_path) == page, "run python -m tests.support.engine_tables"


def test_every_engine_and_preset_has_an_example(tmp_path: Path) -> None:
    registry = all_examples(tmp_path)
    shown = {row_name(model) for model in registry.models.values()}
    assert shown == {*ENGINES, *(f"openai: {preset}" for preset in PRESETS), "openai: openai, api: responses"}
    overview = PAGE.read_text().partition("## What a model can do")[0]
    assert all(f"| `{engine}` |" in overview for engine in ENGINES)


def test_the_classic_set() -> None:
    """A Llama 3 8B on a GPU of one's own, and three Claude models."""
    models = load_registry(EXAMPLES).models
    assert list(models) == ["llama-3-8b", "claude-haiku", "claude-sonnet", "claude-opus"]
    llama = models["llama-3-8b"]
    assert isinstance(llama, VllmModel)
    assert (llama.slots, llama.max_model_len) == (64, 8192)
    assert llama.options.items() >= {("quantization", "awq_marlin")}
    for name in ("haiku", "sonnet", "opus"):
        model = models[f"claude-{name}"]
        assert isinstance(model, AnthropicModel)
        assert (model.secret_envs, model.provider) == (("ANTHROPIC_API_KEY",), "anthropic")
        assert name in model.model
        assert model.capabilities.tools
        assert model.max_model_len is None or model.max_model_len >= 200_000


def test_the_examples_of_presets_have_their_address(tmp_path: Path) -> None:
    for model in all_examples(tmp_path).models.values():
        if isinstance(model, OpenAIModel) and model.server.base_url is not None:
            assert model.options.base_url == model.server.base_url


def test_the_examples_of_engine_options_load(tmp_path: Path) -> None:
    page = PAGE.with_name("engine-options.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 2
    for text in examples:
        (tmp_path / "models.yaml").write_text(text)
        (model,) = load_registry(tmp_path / "models.yaml").models.values()
        assert isinstance(model, VllmModel)
        assert f"`{model.start}`" in page
