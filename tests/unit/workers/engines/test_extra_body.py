"""Parameters of providers (`extra_body`): no value breaks an engine, and none replaces what the engine sends itself."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from shared.config.models.anthropic import AnthropicModel
from shared.config.models.openai import OpenAIModel
from shared.config.models.presets import PRESETS
from shared.config.models.replicate import ReplicateModel
from shared.config.models.runpod import RunpodModel
from shared.config.models.triton import TritonModel
from shared.config.models.upstream import RESERVED, UpstreamModel
from shared.domain.request import GenerateRequest
from shared.telemetry.metrics import Metrics
from tests.support.metrics import worker_metrics
from tests.support.transcripts import run_now
from workers.engines.anthropic.engine import AnthropicEngine
from workers.engines.base import NO_PRIOR
from workers.engines.openai.engine import OpenAIEngine
from workers.engines.replicate.request import model_input
from workers.engines.runpod.request import job_body
from workers.engines.triton.request import request_body as triton_body

VALUES: list[Any] = ["x", "", 1, 1.5, True, None, [], [1], {}, {"a": 1}, {"format": 1, "effort": "x"}, [{"type": "x"}]]
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
SCHEMA = {"json_schema": {"type": "object"}}
TOOL = {"function": {"name": "f", "parameters": {"type": "object"}}}
ASK = [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}]
SAMPLING = {"max_tokens": 4000, "temperature": 0.5, "stop": ["END"]}
REQUESTS: list[dict[str, Any]] = [
    {"messages": ASK},
    {"messages": ASK, "structured_outputs": SCHEMA, "chat": {"reasoning_effort": "low"}},
    {"messages": ASK, "chat": {"tools": [TOOL], "tool_choice": "auto"}, "sampling": SAMPLING, "logprobs": 2},
    {"prompt": "x", "sampling": SAMPLING},
]


def entries() -> list[dict[str, Any]]:
    address = {"base_url": "http://localhost:1/v1"}
    triton = {"engine": "triton", "model": "m"}
    replicate = {"engine": "replicate", "model": "a/b"}
    return [
        {"engine": "openai", "model": "m", "options": address},
        *({"engine": "openai", "preset": preset, "model": "m", "options": address} for preset in PRESETS),
        {"engine": "openai", "preset": "openai", "api": "responses", "model": "m", "options": {}},
        *({"engine": "anthropic", "model": model} for model in ("claude-haiku-4-5", "claude-haiku-5-5")),
        *({**triton, "options": {**address, "backend": backend, "structured_outputs": True}}
          for backend in ("vllm", "tensorrtllm")),
        {**triton, "options": {**address, "backend": "llmapi"}},
        {**triton, "options": {**address, "backend": "python", "text_input": "TEXT", "inputs": {"own": 1}}},
        replicate,
        {**replicate, "options": {"input": {"conversation": "messages", "system_prompt": "sys"}}},
        {**replicate, "options": {"input": {"constants": {"c": 1}}}},
        *({"engine": "runpod", "endpoint": "e", "options": {"input": kind}} for kind in ("openai", "vllm")),
    ]  # fmt: skip


SPECS: dict[str, type[UpstreamModel]] = {
    "openai": OpenAIModel,
    "anthropic": AnthropicModel,
    "triton": TritonModel,
    "replicate": ReplicateModel,
    "runpod": RunpodModel,
}


def load(entry: dict[str, Any], *extra_body: str) -> UpstreamModel:
    options = {**entry.get("options", {}), "extra_body": list(extra_body)}
    return SPECS[entry["engine"]].model_validate({"name": "up", **entry, "options": options})


def body(spec: UpstreamModel, request: GenerateRequest, metrics: Metrics) -> dict[str, Any]:
    """The parameters that the provider gets, as JSON."""
    sent: Any
    match spec:
        case OpenAIModel():
            sent = run_now(OpenAIEngine(spec, metrics).exchange(request, NO_PRIOR)).first().body
        case AnthropicModel():
            sent = run_now(AnthropicEngine(spec, metrics).exchange(request, NO_PRIOR)).first().body
        case TritonModel():
            sent = triton_body(spec, request, "x", 10)
        case ReplicateModel():
            sent = run_now(model_input(request, spec.options.input))
        case RunpodModel():
            sent = run_now(job_body(request, spec))["input"]
            sent = sent.get("openai_input") or sent["sampling_params"]
    parsed: dict[str, Any] = orjson.loads(orjson.dumps(sent))
    return parsed


def requests_for(spec: UpstreamModel) -> list[GenerateRequest]:
    """The requests that the model can serve, in part at least."""
    found = []
    for fields in REQUESTS:
        if "prompt" in fields and not spec.capabilities.raw_prompts:
            continue
        if "structured_outputs" in fields and "json_schema" not in spec.capabilities.structures:
            continue
        if "logprobs" in fields and spec.capabilities.logprobs is None:
            continue
        request = GenerateRequest.model_validate(fields)
        if next(spec.unsupported(request), None) is None:
            found.append(request)
    return found


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: "-".join(str(value) for value in entry.values())[:60])
def test_no_value_breaks_an_engine(entry: dict[str, Any]) -> None:
    metrics = worker_metrics()
    plain = load(entry)
    checked = 0
    for request in requests_for(plain):
        base = body(plain, request, metrics)
        for name in [*base, "novel", "reasoning", "text", "provider", "output_config", "service_tier", "metadata"]:
            if not NAME.fullmatch(name):
                continue
            if name in RESERVED | plain.own_parameters:
                with pytest.raises(ValidationError, match=f"must not contain {re.escape(name)}, which Headrace sets"):
                    load(entry, name)
                continue
            spec = load(entry, name)
            for value in VALUES:
                wanted = request.model_copy(update={"extra_body": {name: value}})
                if next(spec.unsupported(wanted), None) is not None:
                    continue
                sent = body(spec, wanted, metrics)
                checked += 1
                if name not in base:
                    assert sent == base | {name: value}
                else:  # an object, to which the client adds members
                    assert sent.keys() == base.keys()
                    assert sent[name] == {**value, **base[name]}
    assert checked


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ({"engine": "anthropic", "model": "claude-haiku-4-5"}, "output_config"),
        ({"engine": "anthropic", "model": "claude-haiku-4-5"}, "cache_control"),
        ({"engine": "anthropic", "model": "claude-haiku-4-5"}, "logprobs"),
        ({"engine": "replicate", "model": "a/b"}, "prompt"),
        ({"engine": "replicate", "model": "a/b", "options": {"input": {"constants": {"seed_text": 1}}}}, "seed_text"),
        ({"engine": "triton", "model": "m", "options": {"base_url": "http://a", "backend": "vllm"}},
         "sampling_parameters"),
        ({"engine": "openai", "preset": "sglang", "model": "m", "options": {"base_url": "http://a/v1"}}, "ebnf"),
    ],
)  # fmt: skip
def test_what_the_engine_sets_itself_cannot_be_allowed(entry: dict[str, Any], name: str) -> None:
    with pytest.raises(ValidationError, match=f"must not contain {name}, which Headrace sets"):
        load(entry, name)


def test_the_providers_own_tier_can_be_allowed() -> None:
    spec = load({"engine": "anthropic", "model": "claude-haiku-4-5"}, "service_tier")
    request = GenerateRequest.model_validate({"messages": ASK, "extra_body": {"service_tier": "standard_only"}})
    assert body(spec, request, worker_metrics())["service_tier"] == "standard_only"


@pytest.mark.parametrize("value", ["x", 1, None, []])
def test_an_object_that_the_engine_adds_to_must_be_one(value: Any) -> None:
    request = GenerateRequest.model_validate({"messages": ASK, "extra_body": {"text": value}})
    spec = load({"engine": "openai", "preset": "openai", "api": "responses", "model": "m"}, "text")
    assert [param for param, _ in spec.unsupported(request)] == ["extra_body.text"]
