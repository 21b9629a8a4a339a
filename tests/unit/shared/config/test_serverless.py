"""Specs of models at serverless providers."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.config.models.base import RegistryError
from shared.config.models.loader import load_registry
from shared.config.models.replicate import REPLICATE_STREAM_HOSTS, ReplicateModel
from shared.config.models.runpod import RunpodModel
from shared.domain.request import StructuredOutputs

EXAMPLE = """\
models:
  - name: llama
    engine: replicate
    model: meta/meta-llama-3-8b-instruct
    options:
      api_key_env: REPLICATE_API_TOKEN
      price_per_second: 0.000975
      input: {system_prompt: system_prompt, parameters: {max_tokens: max_tokens, stop: stop_sequences}}
  - name: mine
    engine: runpod
    endpoint: abc123
    options: {api_key_env: RUNPOD_API_KEY, execution_timeout_s: 900, ttl_s: 3600}
"""


def write(tmp_path: Path, content: str) -> Path:
    file = tmp_path / "models.yaml"
    file.write_text(content)
    return file


def test_specs(tmp_path: Path) -> None:
    registry = load_registry(write(tmp_path, EXAMPLE))
    llama, mine = registry["llama"], registry["mine"]
    assert isinstance(llama, ReplicateModel)
    assert isinstance(mine, RunpodModel)
    assert (llama.secret_envs, mine.secret_envs) == (("REPLICATE_API_TOKEN",), ("RUNPOD_API_KEY",))
    assert llama.options.base_url == "https://api.replicate.com/v1"
    assert mine.options.base_url == "https://api.runpod.ai/v2"
    assert llama.stream_hosts == {"api.replicate.com", *REPLICATE_STREAM_HOSTS}
    assert llama.capabilities.sampling == {"stop"}
    assert llama.capabilities.resume
    assert llama.capabilities.cancel
    assert not llama.capabilities.tools
    assert mine.capabilities.tools
    assert mine.capabilities.structures == set(StructuredOutputs.model_fields)
    own_input = load_registry(write(tmp_path, EXAMPLE.replace("ttl_s: 3600", "ttl_s: 3600, input: vllm")))["mine"]
    assert not own_input.capabilities.tools


def test_a_proxy_gets_no_stream_hosts_by_default(tmp_path: Path) -> None:
    content = EXAMPLE.replace(
        "api_key_env: REPLICATE", "base_url: https://proxy.example/v1\n      api_key_env: REPLICATE"
    )
    llama = load_registry(write(tmp_path, content))["llama"]
    assert isinstance(llama, ReplicateModel)
    assert llama.stream_hosts == {"proxy.example"}


def test_a_host_gets_no_key_of_another(tmp_path: Path) -> None:
    """Streams on the hosts of endpoints are read only if there is one host."""
    two = "endpoints: [{base_url: 'https://%s/v1', api_key_env: A}, {base_url: 'https://%s/v1', api_key_env: B}]"
    for hosts, expected in (
        (("api.replicate.com", "api.replicate.com"), {"api.replicate.com", *REPLICATE_STREAM_HOSTS}),
        (("a.example", "a.example"), {"a.example"}),
        (("a.example", "api.replicate.com"), set()),
    ):
        content = EXAMPLE.replace("api_key_env: REPLICATE_API_TOKEN", two % hosts)
        llama = load_registry(write(tmp_path, content))["llama"]
        assert isinstance(llama, ReplicateModel)
        assert llama.stream_hosts == expected


@pytest.mark.parametrize(
    ("old", "new", "line", "problem"),
    [
        ("    model: meta/meta-llama-3-8b-instruct\n", "", 2, "set one of model, version and deployment"),
        ("meta/meta-llama-3-8b-instruct", "../../account", 4, "model"),
        (
            "meta/meta-llama-3-8b-instruct",
            "a/b\n    version: 0123456789012345678901234567890123456789",
            2,
            "set one of",
        ),
        ("price_per_second: 0.000975", "price_per_second: -1", 7, "price_per_second"),
        ("price_per_second: 0.000975", "stream_hosts: ['https://x.example/']", 7, "must be a host"),
        ("price_per_second: 0.000975", "max_poll_interval_s: 0.05", 5, "at least poll_interval_s"),
        ("stop: stop_sequences", "stopp: stop_sequences", 8, "stopp"),
        ("stop: stop_sequences", "'stop': 'a b'", 8, "pattern"),
        ("endpoint: abc123", "endpoint: ../abc", 11, "endpoint"),
        ("execution_timeout_s: 900", "execution_timeout_s: 5", 12, "execution_timeout_s"),
        ("ttl_s: 3600", "ttl_s: 9", 12, "ttl_s"),
        ("ttl_s: 3600", "input: text", 12, "input"),
    ],
)
def test_problems_name_line_and_field(tmp_path: Path, old: str, new: str, line: int, problem: str) -> None:
    assert old in EXAMPLE
    with pytest.raises(RegistryError) as caught:
        load_registry(write(tmp_path, EXAMPLE.replace(old, new)))
    assert problem in str(caught.value)
    assert f"line {line}:" in str(caught.value)
