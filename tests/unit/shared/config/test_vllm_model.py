"""A vllm model's entry: the structure of its options, its start, its fingerprint, and what speculation rules out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shared.config.models.base import RegistryError
from shared.config.models.loader import load_registry
from shared.config.models.vllm import VllmModel
from tests.support.stack import write_models


def model(**fields: Any) -> VllmModel:
    return VllmModel.model_validate({"name": "m", "engine": "vllm", "model": "x", **fields})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": 8}, "options.quantization: Input should be a valid string"),
        ({"attention_backend": ""}, "options.attention_backend: String should have at least 1 character"),
        ({"tensor_parallel_size": 0}, "options.tensor_parallel_size: Input should be greater than or equal to 1"),
        ({"kv_cache_memory_bytes": "1GiB"}, "options.kv_cache_memory_bytes: Input should be a valid integer"),
        ({"gpu_memory_utilization": 90}, "options.gpu_memory_utilization: Input should be less than or equal to 1"),
        ({"speculative_config": "ngram"}, "options.speculative_config: must be a mapping"),
        ({"max_model_len": "2k"}, "options.max_model_len: Input should be a valid integer"),
        ({"max_num_seqs": -4}, "options.max_num_seqs: Input should be greater than or equal to 1"),
        ({"max_lora_rank": "16"}, "options.max_lora_rank: Input should be a valid integer"),
        ({"max_loras": 0}, "options.max_loras: Input should be greater than or equal to 1"),
        ({"num_gpu_blocks_override": -1}, "options.num_gpu_blocks_override: Input should be greater than or equal"),
        ({"enable_prefix_caching": "yes"}, "options.enable_prefix_caching: Input should be a valid boolean"),
    ],
)
def test_the_structure_of_options_is_checked_without_vllm(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    models = write_models(tmp_path / "models.yaml", [{"name": "m", "engine": "vllm", "model": "x", "options": options}])
    with pytest.raises(RegistryError) as error:
        load_registry(models)
    assert f"models[0].{message}" in str(error.value)


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"start": "compiled", "options": {"enforce_eager": True}}, "start", "another word for options.enforce_eager"),
        ({"start": "fast", "options": {"enforce_eager": True}}, "start", "keep one of them"),
        (
            {"start": "fast", "options": {"compilation_config": {"mode": 3}}},
            "options.compilation_config",
            "has no effect with start: fast",
        ),
        ({"start": "slow"}, "start", "'fast' or 'compiled'"),
    ],
)
def test_contradictions_of_start_are_errors(tmp_path: Path, fields: dict[str, Any], field: str, message: str) -> None:
    models = write_models(tmp_path / "models.yaml", [{"name": "m", "engine": "vllm", "model": "x", **fields}])
    with pytest.raises(RegistryError) as error:
        load_registry(models)
    assert f"models[0].{field}: " in str(error.value)
    assert message in str(error.value)


def test_start_is_part_of_the_fingerprint_as_the_option_that_it_stands_for() -> None:
    fast, compiled = model(start="fast"), model(start="compiled")
    assert fast.fingerprint != compiled.fingerprint
    assert fast.fingerprint == model(options={"enforce_eager": True}).fingerprint
    assert compiled.fingerprint == model().fingerprint, "vLLM compiles unless it is told otherwise"
    assert fast.with_dtype("float32").fingerprint != compiled.with_dtype("float32").fingerprint


def test_parameters_that_speculation_rules_out_are_refused_at_submit() -> None:
    plain, speculative = (
        model(),
        model(options={"speculative_config": {"method": "ngram", "num_speculative_tokens": 4}}),
    )
    assert plain.capabilities.sampling - speculative.capabilities.sampling == {"min_p", "logit_bias"}
    assert plain.capabilities is model().capabilities, "admission reads them for each request"


@pytest.mark.parametrize(("most", "alternatives"), [(None, 20), (-1, 20), (0, 0), (5, 5), (100, 20)])
def test_more_log_probabilities_than_vllm_gives_are_refused_at_submit(most: int | None, alternatives: int) -> None:
    found = model(options={} if most is None else {"max_logprobs": most}).capabilities
    assert (found.logprobs, found.prompt_logprobs) == (alternatives, alternatives)
