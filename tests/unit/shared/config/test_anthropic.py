"""The spec of the `anthropic` engine: published limits, and what an entry changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.config.models.anthropic import AnthropicModel
from shared.config.models.base import RegistryError
from shared.config.models.loader import load_registry


def load(tmp_path: Path, model: str = "claude-haiku-4-5", options: str = "{}") -> AnthropicModel:
    path = tmp_path / "models.yaml"
    path.write_text(
        f"models:\n  - name: claude\n    engine: anthropic\n    model: {model}\n    options: {options}\n",
        encoding="utf-8",
    )
    spec = load_registry(path)["claude"]
    assert isinstance(spec, AnthropicModel)
    return spec


def test_an_entry_needs_no_options(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    entry = {"name": "claude", "engine": "anthropic", "model": "claude-opus-5-5"}
    path.write_text(yaml.safe_dump({"models": [entry]}), encoding="utf-8")
    spec = load_registry(path)["claude"]
    assert isinstance(spec, AnthropicModel)
    assert spec.options.base_url == "https://api.anthropic.com/v1"
    assert (spec.max_model_len, spec.default_max_tokens) == (1_000_000, 128_000)


@pytest.mark.parametrize(
    ("model", "thinking", "sampling", "prefill", "context"),
    [
        ("claude-opus-5-5", "always", False, False, 1_000_000),
        ("claude-opus-5", "adaptive", False, False, 1_000_000),
        ("claude-sonnet-5-5-20261001", "between_tools", False, False, 1_000_000),
        ("claude-haiku-4-5-20251001", "budget", True, True, 200_000),
        ("claude-opus-4-1-20250805", "budget", True, True, 200_000),
        ("claude-sonnet-4-20250514", "budget", True, True, 200_000),
        ("claude-sonnet-4-0", "budget", True, True, 200_000),
        ("claude-fable-5-2", "always", False, False, 1_000_000),
        ("anthropic.claude-opus-4-8", "adaptive", False, False, 1_000_000),
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "budget", True, True, 200_000),
        ("claude-haiku-4-5@20251001", "budget", True, True, 200_000),
        ("anthropic/claude-sonnet-4.6", "adaptive", True, False, 1_000_000),
        # Versions that are not listed are no dates of another one.
        ("claude-opus-5-7", "always", False, False, None),
        ("claude-sonnet-6", "always", False, False, None),
        ("claude-opus-5-10-20270101", "always", False, False, None),
        ("a-model-of-another-server", "budget", True, False, None),
    ],
)
def test_published_limits(
    tmp_path: Path, model: str, thinking: str, sampling: bool, prefill: bool, context: int | None
) -> None:
    limits = load(tmp_path, model).limits
    assert (limits.thinking, limits.sampling, limits.prefill, limits.context) == (thinking, sampling, prefill, context)


def test_an_entry_overrides_published_limits(tmp_path: Path) -> None:
    options = "{max_model_len: 5000, prefill: false, sampling: false, thinking: none, min_cache_tokens: 7}"
    spec = load(tmp_path, options=options)
    limits = spec.limits
    assert (limits.context, limits.prefill, limits.sampling, limits.thinking) == (5000, False, False, "none")
    assert limits.min_cache_tokens == 7
    assert limits.max_output_tokens == 64_000
    assert spec.max_model_len == 5000


def test_a_newer_model_has_no_known_limits(tmp_path: Path) -> None:
    spec = load(tmp_path, "claude-opus-6")
    assert (spec.limits.max_output_tokens, spec.default_max_tokens) == (None, 4096)
    spec = load(tmp_path, "claude-opus-6", "{max_output_tokens: 9000, thinking: adaptive, max_model_len: 50000}")
    assert (spec.default_max_tokens, spec.limits.thinking, spec.max_model_len) == (9000, "adaptive", 50_000)


def test_capabilities_follow_from_the_limits(tmp_path: Path) -> None:
    old, new = load(tmp_path).capabilities, load(tmp_path, "claude-opus-5-5").capabilities
    assert {"temperature", "thinking_token_budget"} <= old.sampling
    assert new.sampling == {"stop"}
    assert (old.prefill, new.prefill) == (True, False)
    assert "required" in old.tool_choices
    assert new.tool_choices == {"none", "auto"}
    assert new.structures == {"json_schema"}
    assert not new.raw_prompts
    assert "reasoning_effort" not in load(tmp_path, options="{thinking: none}").capabilities.chat_options


@pytest.mark.parametrize("value", ["off", '"off"', "false"])
def test_prompt_caching_can_be_turned_off(tmp_path: Path, value: str) -> None:
    assert load(tmp_path, options=f"{{prompt_caching: {value}}}").options.prompt_caching == "off"


@pytest.mark.parametrize(
    ("option", "field"),
    [
        ({"thinking": "sometimes"}, "models[0].options.thinking"),
        ({"anthropic_beta": ["two words"]}, "models[0].options.anthropic_beta[0]"),
        ({"anthropic_version": "a\nb"}, "models[0].options.anthropic_version"),
        ({"prompt_caching": "on"}, "models[0].options.prompt_caching"),
        ({"temperature": 1}, "models[0].options.temperature"),
        ({"base_url": "api.anthropic.com"}, "models[0].options.base_url"),
    ],
)
def test_a_wrong_option_is_named_with_its_line(tmp_path: Path, option: dict[str, Any], field: str) -> None:
    with pytest.raises(RegistryError) as caught:
        load(tmp_path, options=yaml.safe_dump(option, default_flow_style=True))
    assert field in str(caught.value)
    assert "line " in str(caught.value)
