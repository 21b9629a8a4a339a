"""The fingerprint of a model changes with what may change its output, and with nothing else."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import TypeAdapter

from shared.config.models.loader import ModelSpec
from shared.config.models.operational import operational_fields
from shared.config.models.reload import needs_restart

SPEC: TypeAdapter[Any] = TypeAdapter(ModelSpec)
CLASSES = {get_args(spec.model_fields["engine"].annotation)[0]: spec for spec in get_args(get_args(ModelSpec)[0])}
URL = "http://upstream.example.com/v1"
UPSTREAM = {"base_url": URL, "api_key_env": "KEY", "health_path": "/ready"}
ENTRIES: dict[str, dict[str, Any]] = {
    "vllm": {"model": "folder", "warm_prompts": [{"top": 3}]},
    "openai": {"model": "theirs", "preset": "vllm", "options": UPSTREAM},
    "anthropic": {"model": "claude-haiku-5-5", "options": UPSTREAM},
    "triton": {"model": "theirs", "options": UPSTREAM | {"backend": "vllm"}},
    "replicate": {"model": "owner/name", "options": UPSTREAM},
    "runpod": {"endpoint": "abc", "options": UPSTREAM},
    "simulated": {},
}
# These engines have no log probabilities, whose number would be limited.
NO_LOGPROBS = {"anthropic", "triton", "replicate"}
# A changed value of each operational field, by the path in the entry.
SPECS = {
    "description": "other",
    "max_logprob_values": 7,
    "cache": {"ttl": 60},
    "context": {"strategy": "sliding_window"},
    "token_limits": {"max_output": 100},
    "price": {"input": 1, "output": 2},
}
MANAGED = SPECS | {
    "slots": 3,
    "modalities": [],
    "options.base_url": "http://other.example.com",
    "options.api_key_env": "OTHER",
    "options.endpoints": [{"base_url": URL, "weight": 7}],
    "options.health_path": "/health",
    "options.health_interval_s": 7,
    "options.connect_timeout_s": 7,
    "options.read_timeout_s": 7,
    "options.max_retries": 7,
    "options.max_wait_s": 7,
    "options.requests_per_minute": 7,
    "options.max_concurrency": 3,
    "options.tokens_per_minute": 7,
    "options.log_error_texts": True,
    "options.extra_body": ["beta"],
}
STREAMED = MANAGED | {"options.stall_timeout_s": 7}
POLLED = MANAGED | {
    "options.start_timeout_s": 7,
    "options.poll_interval_s": 1,
    "options.max_poll_interval_s": 7,
    "options.max_polls_per_s": 7,
    "options.price_per_second": 7,
}
OPERATIONAL: dict[str, dict[str, Any]] = {
    "vllm": SPECS
    | {"structured_outputs": {"max_bytes": 7}, "warm_prompts": [{"text": "Be brief."}], "warm_prompts_timeout_s": 7},
    "openai": STREAMED | {"options.detect_max_model_len": False, "options.cache_salt": False},
    "anthropic": STREAMED | {"options.prompt_caching": "off", "options.min_cache_tokens": 7},
    "triton": STREAMED | {"options.api_key_header": "X-Key"},
    "replicate": POLLED | {"options.stream_hosts": ["stream.example.com"], "options.cancel_after_s": 7},
    "runpod": POLLED | {"options.execution_timeout_s": 7, "options.ttl_s": 77, "options.low_priority": True},
    "simulated": SPECS | {"slots": 3, "modalities": ["image"], "structured_outputs": {"max_bytes": 7}},
}
OTHERS: dict[str, dict[str, Any]] = {
    "vllm": {
        "model": "other",
        "start": "fast",
        "options.max_num_seqs": 7,
        "options.dtype": "half",
        "chat.tool_call_parser": "hermes",
    },
    "openai": {"model": "other", "api": "responses", "preset": "sglang", "options.prefill": False},
    "anthropic": {"model": "other", "options.default_max_tokens": 7, "options.anthropic_beta": ["a-1"]},
    "triton": {"model": "other", "options.version": "7", "options.inputs": {"a": 1}, "options.tokenizer": "folder"},
    "replicate": {"model": "owner/other", "options.input.constants": {"a": 1}},
    "runpod": {"endpoint": "def", "model": "other", "options.input": "vllm"},
    "simulated": {"options.default_tokens": 7, "options.stop_after": 7},
}


def spec(engine: str, path: str = "", value: Any = None) -> Any:
    """A model, with the value at a path of its entry replaced."""
    entry: dict[str, Any] = {"name": "m", "engine": engine, **ENTRIES[engine]}
    entry["options"] = dict(entry.get("options", {}))
    if path == "options.endpoints":
        del entry["options"]["base_url"], entry["options"]["api_key_env"]
    if path:
        target = entry
        *parents, last = path.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return SPEC.validate_python(entry)


def cases(table: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    return [
        (engine, path)
        for engine, paths in table.items()
        for path in paths
        if path != "max_logprob_values" or engine not in NO_LOGPROBS
    ]


@pytest.mark.parametrize("engine", ENTRIES)
def test_each_operational_field_has_a_case(engine: str) -> None:
    kind = CLASSES[engine]
    options: Any = type(spec(engine).options)
    marked = set(operational_fields(kind))
    if engine != "vllm":  # vLLM's options are its own
        marked |= {f"options.{name}" for name in operational_fields(options)}
    assert OPERATIONAL[engine].keys() == marked


@pytest.mark.parametrize(("engine", "path"), cases(OPERATIONAL))
def test_operational_fields_are_no_part_of_it(engine: str, path: str) -> None:
    old, new = spec(engine), spec(engine, path, OPERATIONAL[engine][path])
    assert new != old
    assert new.fingerprint == old.fingerprint
    assert not needs_restart(old, new)


@pytest.mark.parametrize(("engine", "path"), cases(OTHERS))
def test_other_fields_are_part_of_it(engine: str, path: str) -> None:
    old, new = spec(engine), spec(engine, path, OTHERS[engine][path])
    assert new.fingerprint != old.fingerprint
    assert needs_restart(old, new) == (engine == "vllm"), "other engines are replaced in the running worker"


def test_another_engine_needs_another_worker() -> None:
    assert needs_restart(spec("anthropic"), spec("vllm"))
    assert needs_restart(spec("openai"), spec("simulated"))
