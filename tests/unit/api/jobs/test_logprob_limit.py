"""The limit on the number of log probabilities in one answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from api.context.window import ContextWindow
from api.jobs.logprob_limit import LogprobLimit
from shared.config.models.base import DEFAULT_LOGPROB_VALUES
from shared.config.models.loader import load_registry
from shared.domain.errors import InvalidRequest
from shared.domain.request import GenerateRequest, Message, Sampling
from tests.support.stack import write_models

CONTEXT = 1000


@pytest.fixture
def limit(tmp_path: Path) -> LogprobLimit:
    simulated = {"engine": "simulated"}
    upstream = {"engine": "openai", "model": "m", "options": {"base_url": "http://127.0.0.1:1/v1"}}
    registry = load_registry(
        write_models(
            tmp_path / "models.yaml",
            [
                {
                    "name": "sim",
                    "engine": "simulated",
                    "max_logprob_values": 2100,
                    "options": {"max_model_len": CONTEXT},
                },
                {"name": "default", **simulated, "options": {"max_model_len": 1 << 20}},
                {"name": "unknown", **upstream},
            ],
        )
    )
    return LogprobLimit(registry, ContextWindow(registry))


def request(logprobs: int | None = None, *, chat: bool = True, **others: Any) -> GenerateRequest:
    sampling = Sampling(**others.pop("sampling", {}))
    prompt = {"messages": [Message(role="user", content="x")]} if chat else {"prompt": others.pop("prompt", "x")}
    return GenerateRequest(**prompt, sampling=sampling, logprobs=logprobs, **others)


async def rejection(limit: LogprobLimit, request: GenerateRequest, model: str = "sim") -> str:
    with pytest.raises(InvalidRequest) as caught:
        await limit.check(model, request)
    assert caught.value.param is not None
    assert caught.value.message.startswith(f"{caught.value.param}: ")
    return caught.value.message


async def test_n_times_max_tokens_times_alternatives(limit: LogprobLimit) -> None:
    await limit.check("sim", request(20, sampling={"max_tokens": 100}))
    await limit.check("sim", request(20, sampling={"max_tokens": 50, "n": 2}))
    message = await rejection(limit, request(20, sampling={"max_tokens": 51, "n": 2}))
    assert "2 x 51 (max_tokens) x 21 = 2142" in message
    assert "at most 2100 " in message
    assert "Set max_tokens to 50 or less" in message


async def test_without_max_tokens_the_rest_of_the_context_counts(limit: LogprobLimit) -> None:
    await limit.check("sim", request(1))
    prompt = "word " * (CONTEXT - 701)
    await limit.check("sim", request(2, chat=False, prompt=prompt))
    message = await rejection(limit, request(2, chat=False, prompt="a prompt"))
    assert "1 x 997 (what the prompt leaves of the context) x 3" in message


async def test_requests_without_log_probabilities_are_not_limited(limit: LogprobLimit) -> None:
    await limit.check("sim", request(sampling={"max_tokens": CONTEXT, "n": 16}))
    await limit.check("sim", request(echo=True, chat=False))
    await limit.check("default", request())


async def test_an_unknown_context_is_not_checked_unless_max_tokens_is_set(limit: LogprobLimit) -> None:
    await limit.check("unknown", request(20, sampling={"n": 16}))
    message = await rejection(limit, request(20, sampling={"n": 16, "max_tokens": 2000}), "unknown")
    assert "16 x 2000 (max_tokens) x 21 = 672000" in message


async def test_the_default_allows_long_answers(limit: LogprobLimit) -> None:
    assert DEFAULT_LOGPROB_VALUES > 8192 * 21
    await limit.check("default", request(20, sampling={"max_tokens": 8192}))
    await limit.check("default", request(0, sampling={"max_tokens": DEFAULT_LOGPROB_VALUES}))


async def test_log_probabilities_of_the_prompt(limit: LogprobLimit) -> None:
    await limit.check("sim", request(chat=False, prompt=[7] * 100, prompt_logprobs=20))
    message = await rejection(limit, request(chat=False, prompt=[7] * 101, prompt_logprobs=20))
    assert message.startswith("prompt_logprobs: ")
    echoed = request(20, chat=False, prompt=[7] * 101, echo=True, sampling={"max_tokens": 1})
    assert (await rejection(limit, echoed)).startswith("logprobs: ")
    await limit.check("sim", request(20, chat=False, prompt=[7] * 101, sampling={"max_tokens": 1}))


def test_the_limit_is_a_setting_of_the_model_and_not_part_of_its_fingerprint(tmp_path: Path) -> None:
    entry = {"name": "sim", "engine": "simulated"}
    fingerprints = set()
    for more in ({}, {"max_logprob_values": 10}):
        path = tmp_path / "models.yaml"
        path.write_text(json.dumps({"models": [{**entry, **more}]}))
        fingerprints.add(load_registry(path)["sim"].fingerprint)
    assert len(fingerprints) == 1


async def test_refusals_because_of_a_reported_context_are_noted(tmp_path: Path) -> None:
    """The worker reads it again: it may be old. Refusals for other reasons are not."""
    options = {"base_url": "http://127.0.0.1:1/v1"}
    entry = {"name": "up", "engine": "openai", "preset": "vllm", "model": "m", "max_logprob_values": 2100}
    registry = load_registry(write_models(tmp_path / "models.yaml", [{**entry, "options": options}]))
    window = ContextWindow(registry)
    limit, source = LogprobLimit(registry, window), registry["up"].context_source
    assert source is not None
    window.learn({source: CONTEXT})
    await rejection(limit, request(20, sampling={"max_tokens": 1000}), "up")
    assert not window.take_refusals()
    await rejection(limit, request(20), "up")
    assert set(window.take_refusals()) == {source}
    assert not window.take_refusals()
