"""What workers report about their engines."""

from __future__ import annotations

import json

import pytest

from shared.config.models.simulated import SimulatedModel
from shared.domain.engine_info import MAX_ITEMS, MAX_TEXT, AdaptersInfo, EngineInfo, QuantizationInfo, SpeculationInfo
from workers.engines.factory import describe_engine
from workers.engines.info import info_of


def test_json_has_what_was_set_and_is_read_back() -> None:
    info = EngineInfo(
        engine="vLLM 0.32.0",
        dtype="bfloat16",
        quantization=QuantizationInfo(method="awq", origin="checkpoint"),
        speculation=None,
    )
    assert info.as_json() == {
        "engine": "vLLM 0.32.0",
        "dtype": "bfloat16",
        "quantization": {"method": "awq", "from": "checkpoint"},
        "speculation": None,
    }
    assert EngineInfo.read(json.loads(json.dumps(info.as_json()))) == info


def test_its_size_is_bounded() -> None:
    info = EngineInfo(
        engine="x" * 10_000,
        speculation=SpeculationInfo(
            method="ngram", tokens_per_batch_size=tuple((at, at, 1) for at in range(10_000)), draft="/" * 10_000
        ),
        adapters=AdaptersInfo(names=tuple(f"{at}{'n' * 500}" for at in range(10_000))),
    )
    assert info.engine == "x" * (MAX_TEXT - 1) + "…"
    assert info.speculation is not None
    assert info.speculation.tokens_per_batch_size is not None
    assert len(info.speculation.tokens_per_batch_size) == MAX_ITEMS
    assert len(json.dumps(info.as_json())) < 20_000


@pytest.mark.parametrize("value", [None, [], "vllm", {"dtype": "bfloat16"}, {"engine": "x", "kv_cache": "large"}])
def test_another_form_is_unknown(value: object) -> None:
    assert EngineInfo.read(value) is None


def test_members_of_a_newer_version_are_ignored() -> None:
    assert EngineInfo.read({"engine": "x", "watts": 300, "kv_cache": {"blocks": 3, "tiers": []}}) == EngineInfo.read(
        {"engine": "x", "kv_cache": {"blocks": 3}}
    )


def test_an_engine_that_loads_no_model_reports_its_entry() -> None:
    model = SimulatedModel.model_validate(
        {"name": "m", "engine": "simulated", "slots": 3, "options": {"max_model_len": 512}}
    )
    info = info_of(model)
    assert (info.engine, info.slots, info.context, info.fingerprint) == ("simulated", 3, 512, model.fingerprint)
    assert describe_engine(model) == {"model": "m", **info.as_json()}
