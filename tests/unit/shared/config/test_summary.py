"""What operators see of a model's entry."""

from __future__ import annotations

from shared.config.models.simulated import SimulatedModel
from shared.config.models.vllm import VllmModel


def test_a_summary_has_what_was_set() -> None:
    model = SimulatedModel.model_validate(
        {"name": "m", "engine": "simulated", "description": "A model.", "options": {"ttft_ms": 3}}
    )
    assert model.summary == {"engine": "simulated", "options": {"ttft_ms": 3.0}}


def test_a_summary_has_no_secrets_and_no_prompts() -> None:
    model = VllmModel.model_validate(
        {
            "name": "m",
            "engine": "vllm",
            "model": "org/model",
            "options": {"hf_token": "secret", "max_num_seqs": 8, "hf_overrides": {"api-key": "secret", "layers": 2}},
            "warm_prompts": [{"text": "secret"}],
        }
    )
    assert "secret" not in str(model.summary)
    assert model.summary["options"] == {"max_num_seqs": 8, "hf_overrides": {"layers": 2}}
