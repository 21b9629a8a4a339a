"""What the entry of a model on Triton says about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shared.config.models.base import RegistryError, TokenizerFiles
from shared.config.models.loader import load_registry
from shared.config.models.triton import TritonModel


def entry(**options: Any) -> TritonModel:
    fields = {"base_url": "http://triton:8000", "backend": "vllm", **options}
    return TritonModel.model_validate({"name": "m", "engine": "triton", "model": "theirs", "options": fields})


def test_conversations_need_a_template() -> None:
    assert not entry().capabilities.conversations
    assert entry(chat_template="chat.jinja").capabilities.conversations
    assert entry(tokenizer="/models/llama").capabilities.conversations


def test_the_backend_decides_which_parameters_are_accepted() -> None:
    vllm, tensorrtllm = entry().capabilities, entry(backend="tensorrtllm").capabilities
    assert {"min_p", "ignore_eos", "stop", "bad_words"} <= vllm.sampling
    assert not {"logit_bias", "thinking_token_budget"} & vllm.sampling
    assert {"temperature", "stop", "include_stop_str_in_output", "bad_words"} <= tensorrtllm.sampling
    assert not {"min_p", "ignore_eos", "max_tokens"} & tensorrtllm.sampling
    assert entry(backend="python").capabilities.sampling == {"stop", "include_stop_str_in_output"}
    own = entry(backend="python", parameters={"temperature": "t"})
    assert own.capabilities.sampling == {"stop", "include_stop_str_in_output", "temperature"}
    for backend in ("tensorrtllm", "vllm", "llmapi"):
        full, less = entry(backend=backend), entry(backend=backend, parameters={"seed": None})
        assert full.capabilities.sampling - less.capabilities.sampling == {"seed"}
    for backend in ("vllm", "llmapi"):
        less = entry(backend=backend, parameters={"stop": None})
        assert less.cuts_at_stop_strings
        assert {"stop", "include_stop_str_in_output"} <= less.capabilities.sampling
    assert (vllm.structures != set(), tensorrtllm.structures) == (True, frozenset())
    assert not entry(structured_outputs=False).capabilities.structures


def test_usage_is_exact_if_the_backend_or_a_tokenizer_counts(tmp_path: Path) -> None:
    assert entry().capabilities.usage
    assert not entry(backend="python").capabilities.usage
    assert entry(backend="python", tokenizer=str(tmp_path)).capabilities.usage


def test_the_api_counts_with_the_tokenizer_if_it_has_the_files(tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    spec = entry(tokenizer=str(tmp_path), chat_template=str(template))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).touch()
    assert spec.prompt_tokenizer is None
    template.touch()
    assert spec.prompt_tokenizer == TokenizerFiles(tmp_path, renders_chat=True, template=template)
    assert spec.capabilities.token_counting


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("backend: onnx", "options.backend: Input should be 'vllm', 'tensorrtllm', 'llmapi' or 'python'"),
        ("version: latest", "options.version: String should match pattern"),
        ("parameters: {heat: t}", "options.parameters.heat.[key]: Input should be"),
        ("outputs: cumulative", "options.outputs: unknown field"),
    ],
)
def test_errors_name_the_line_and_the_field(tmp_path: Path, line: str, message: str) -> None:
    backend = "" if line.startswith("backend") else ", backend: python"
    file = tmp_path / "models.yaml"
    file.write_text(
        "models:\n- name: m\n  engine: triton\n  model: theirs\n"
        f"  options: {{base_url: 'http://triton:8000'{backend},\n    {line}}}\n"
    )
    with pytest.raises(RegistryError) as caught:
        load_registry(file)
    assert "line 6: models[0]." in str(caught.value)
    assert message in str(caught.value)
