"""Requests in the conventions of Triton's backends."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from shared.config.models.triton import Backend, TritonModel
from shared.domain.request import GenerateRequest, Sampling, StructuredOutputs
from workers.engines.triton.request import request_body

SAMPLING = Sampling(temperature=0.5, top_p=0.9, seed=-1, stop=["END"], min_tokens=1)


def model(backend: Backend, **options: Any) -> TritonModel:
    entry = {"base_url": "http://triton:8000", "backend": backend, **options}
    return TritonModel.model_validate({"name": "m", "engine": "triton", "model": "theirs", "options": entry})


def body(spec: TritonModel, **request: Any) -> dict[str, Any]:
    return request_body(spec, GenerateRequest(prompt="x", **request), "the prompt", 9)


def test_vllm_takes_its_sampling_parameters_as_json() -> None:
    sent = body(model("vllm"), sampling=SAMPLING)
    assert orjson.loads(sent.pop("sampling_parameters")) == {
        "temperature": 0.5, "top_p": 0.9, "seed": -1, "stop": ["END"], "min_tokens": 1, "max_tokens": 9,
    }  # fmt: skip
    assert sent == {
        "text_input": "the prompt",
        "stream": True,
        "return_finish_reason": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
    }


def test_tensorrt_llm_takes_inputs() -> None:
    assert body(model("tensorrtllm"), sampling=SAMPLING) == {
        "text_input": "the prompt",
        "stream": True,
        "exclude_input_in_output": True,
        "return_num_input_tokens": True,
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 2**64 - 1,
        "stop_words": ["END"],
        "min_tokens": 1,
    }


def test_the_llm_api_prefixes_its_inputs() -> None:
    sent = body(model("llmapi"), sampling=Sampling(temperature=0.5, stop=["END"]))
    assert sent["sampling_param_max_tokens"] == 9
    assert sent["sampling_param_temperature"] == 0.5
    assert sent["sampling_param_stop"] == ["END"]
    assert sent["streaming"] is True


@pytest.mark.parametrize("backend", ["vllm", "llmapi"])
def test_stop_strings_that_the_model_does_not_take_are_not_sent(backend: Backend) -> None:
    """The worker ends the text before them."""
    spec = model(backend, parameters={"stop": None})
    sampling = Sampling(stop=["END"], include_stop_str_in_output=True)
    assert "END" not in str(body(spec, sampling=sampling))
    assert spec.cuts_at_stop_strings


def test_names_and_fixed_inputs_of_the_options_take_precedence() -> None:
    spec = model(
        "python",
        text_input="PROMPT",
        parameters={"max_tokens": "request_output_len", "temperature": "t"},
        inputs={"stream": False, "lora": "a"},
    )
    assert body(spec, sampling=Sampling(temperature=0.5)) == {
        "PROMPT": "the prompt", "stream": False, "lora": "a", "request_output_len": 9, "t": 0.5,
    }  # fmt: skip
    assert "max_tokens" not in body(model("python", parameters={"max_tokens": None}))


@pytest.mark.parametrize(
    ("structure", "vllm", "tensorrtllm"),
    [
        ({"json_schema": {"type": "object"}}, {"json": {"type": "object"}}, ("json_schema", '{"type":"object"}')),
        ({"json_object": True}, {"json_object": True}, ("json", None)),
        ({"regex": "a+"}, {"regex": "a+"}, ("regex", "a+")),
        ({"grammar": "root ::= a"}, {"grammar": "root ::= a"}, ("ebnf_grammar", "root ::= a")),
        ({"choice": ["a"]}, {"choice": ["a"]}, None),
    ],
)
def test_structured_outputs(structure: Any, vllm: Any, tensorrtllm: tuple[str, str | None] | None) -> None:
    output = StructuredOutputs(**structure)
    sampling = orjson.loads(body(model("vllm"), structured_outputs=output)["sampling_parameters"])
    assert orjson.loads(sampling["guided_decoding"]) == vllm
    spec = model("tensorrtllm", structured_outputs=True)
    assert (next(iter(structure)) in spec.capabilities.structures) == (tensorrtllm is not None)
    if tensorrtllm is not None:
        sent = body(spec, structured_outputs=output)
        assert (sent["guided_decoding_guide_type"], sent.get("guided_decoding_guide")) == tensorrtllm
