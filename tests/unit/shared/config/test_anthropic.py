"""The spec of the `anthropic` engine: published limits, and what an entry changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.config.models.anthropic import AnthropicModel
from shared.config.models.base import RegistryError
from shared.config.models.loader import load_registry
from shared.domain.request import ChatOptions, Function, GenerateRequest, Message, Sampling, Tool

TOOL = Tool(function=Function(name="f"))


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
        ("claude-newtier-6", "always", False, False, None),
        ("claude-3-7-sonnet-20250219", "budget", True, True, 200_000),
        ("claude-3-5-sonnet-20241022", "none", True, True, 200_000),
        ("claude-3-5-sonnet-latest", "none", True, True, 200_000),
        ("claude-3-5-sonnet-v2@20241022", "none", True, True, 200_000),
        ("claude-3-opus-20240229", "none", True, True, 200_000),
        ("anthropic.claude-3-sonnet-20240229-v1:0:28k", "none", True, True, 200_000),
        ("claude-2.1", "none", True, True, 200_000),
        ("claude-2", "none", True, True, 100_000),
        ("anthropic.claude-v2:1", "none", True, True, 200_000),
        ("claude-instant-1.2", "none", True, True, 100_000),
        # Ways of gateways to write an id.
        ("claude-4-sonnet", "budget", True, True, 200_000),
        ("databricks-claude-sonnet-4", "budget", True, True, 200_000),
        ("anthropic/claude-3.7-sonnet:thinking", "budget", True, True, 200_000),
        ("claude_3_5_sonnet", "none", True, True, 200_000),
        ("claude-35-sonnet", "none", True, True, 200_000),
        ("claude-sonnet-4-1m", "budget", True, True, 200_000),
        ("CLAUDE-SONNET-4-5", "budget", True, True, 200_000),
        # Unlisted models of earlier generations.
        ("claude-1.3", "none", True, True, None),
        ("claude-3", "none", True, True, None),
        ("anthropic.claude-instant-v1", "none", True, True, None),
        ("claude-4", "budget", True, True, None),
        ("claude-haiku-4-1", "budget", True, True, None),
        ("claude-haiku-4-6", "adaptive", True, False, None),
        ("claude-opus-4-9", "always", False, False, None),
        # Aliases that do not name the version.
        ("claude", "budget", True, False, None),
        ("claude-sonnet", "budget", True, False, None),
        ("claude-sonnet-latest", "budget", True, False, None),
        ("claude-sonnet-v2", "budget", True, False, None),
        ("claude-20250514", "budget", True, False, None),
        ("claude-prod-1", "budget", True, False, None),
        ("us-east-1/claude", "budget", True, False, None),
        ("my-claude", "budget", True, False, None),
        ("openclaude-3-7b", "budget", True, False, None),
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


@pytest.mark.parametrize(
    "model", ["claude-3-5-sonnet-20241022", "claude-3-opus-20240229", "claude-2.1", "claude-sonnet"]
)
def test_old_models_and_aliases_accept_sampling_parameters(tmp_path: Path, model: str) -> None:
    spec = load(tmp_path, model)
    request = GenerateRequest(
        messages=[Message(role="user", content="hi")], sampling=Sampling(temperature=0.2, top_p=0.9, top_k=5)
    )
    assert list(spec.unsupported(request)) == []
    assert {"temperature", "top_p", "top_k"} <= spec.capabilities.sampling


def test_the_server_checks_what_is_not_known_of_an_alias(tmp_path: Path) -> None:
    """Combinations of parameters that only some Claude models refuse."""
    request = GenerateRequest(
        messages=[Message(role="user", content="hi")],
        chat=ChatOptions(reasoning_effort="high", tool_choice="required", tools=[TOOL]),
        sampling=Sampling(temperature=0.2, max_tokens=500_000),
    )
    assert [param for param, _ in load(tmp_path, "claude-sonnet-4-5").unsupported(request)] != []
    unsupported = [param for param, _ in load(tmp_path, "claude-sonnet").unsupported(request)]
    assert "temperature" not in unsupported
    assert "max_tokens" not in unsupported


@pytest.mark.parametrize("model", ["claude-sonnet", "claude-sonnet-7", "a-name-of-the-gateway", "claude-haiku-4-5"])
def test_the_base_model_of_an_alias_gives_its_limits(tmp_path: Path, model: str) -> None:
    expected = load(tmp_path, "claude-opus-4-6").limits
    spec = load(tmp_path, model, "{base_model: claude-opus-4-6}")
    assert (spec.limits, spec.model) == (expected, model)
    changed = load(tmp_path, model, "{base_model: claude-opus-4-6, thinking: none, max_output_tokens: 9}").limits
    assert changed == replace(expected, thinking="none", max_output_tokens=9)


@pytest.mark.parametrize("base", ["claude-sonnet", "claude-sonnet-7", "gpt-5", ""])
def test_a_base_model_must_be_listed(tmp_path: Path, base: str) -> None:
    with pytest.raises(RegistryError, match=r"options\.base_model: must be a Claude model"):
        load(tmp_path, options=f'{{base_model: "{base}"}}')


def test_models_without_a_cache_get_no_breakpoints(tmp_path: Path) -> None:
    for model in ("claude-2.1", "claude-3-sonnet-20240229", "claude-instant-1.2"):
        limits = load(tmp_path, model).limits
        assert limits.context is not None
        assert limits.min_cache_tokens > limits.context


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
