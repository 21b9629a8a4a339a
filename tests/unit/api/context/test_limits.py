"""Limits of tokens, of models and of keys, at admission."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as some
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from api.context.limits import TokenLimiter
from api.context.window import ContextWindow
from api.jobs.admission import Admission
from api.keys.principal import Principal
from api.openai.schemas import CompletionRequest
from shared.config.models.anthropic import AnthropicModel
from shared.config.models.base import RegistryError
from shared.config.models.loader import ModelSpec, Registry, load_registry
from shared.config.models.openai import OpenAIModel
from shared.config.models.simulated import SimulatedModel
from shared.config.models.triton import TritonModel
from shared.config.models.vllm import VllmModel
from shared.domain.answer_options import ContextOptions, KeyOptions, TokenLimits
from shared.domain.errors import InvalidRequest
from shared.domain.log_level import LogLevel
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Message, Sampling
from tests.support.examples import example_count
from tests.support.metrics import api_metrics
from tests.support.stack import write_models
from tests.support.transcripts import run_now
from tests.unit.api.jobs.test_capability_check import Dialect, chat, messages, native, responses

OWNER = Owner(1, 1)


def spec(limits: dict[str, Any] | None = None, **options: Any) -> SimulatedModel:
    return SimulatedModel.model_validate(
        {"name": "m", "engine": "simulated", "options": options, "token_limits": limits}
    )


def relayed(**entry: Any) -> OpenAIModel:
    options = {"base_url": "http://localhost:1/v1", **entry.pop("options", {})}
    return OpenAIModel.model_validate({"name": "m", "engine": "openai", "model": "m", "options": options, **entry})


def claude(model: str, **entry: Any) -> AnthropicModel:
    return AnthropicModel.model_validate({"name": "m", "engine": "anthropic", "model": model, **entry})


def principal(**limits: Any) -> Principal:
    options = KeyOptions(token_limits=TokenLimits(**limits)) if limits else KeyOptions()
    return replace(Principal.of(OWNER), options=options)


def conversation(text: str = "x", **sampling: Any) -> GenerateRequest:
    return GenerateRequest(messages=[Message(role="user", content=text)], sampling=Sampling(**sampling))


def admitted(model: ModelSpec, who: Principal, request: GenerateRequest, admission: Admission | None = None) -> NewJob:
    if admission is None:
        registry = Registry({"m": model})
        admission = Admission(registry, ContextWindow(registry))
    return run_now(admission.admit(who, NewJob(OWNER, "m", 3, request)))


def refusal(model: ModelSpec, who: Principal, request: GenerateRequest) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        admitted(model, who, request)
    assert caught.value.message.startswith(f"{caught.value.param}: ")
    return caught.value


@pytest.mark.parametrize(
    ("of_model", "of_key", "requested", "applied"),
    [
        ({}, {}, None, None),
        ({}, {}, 5000, 5000),
        ({"default_output": 50}, {}, None, 50),
        ({"default_output": 50}, {}, 70, 70),
        ({"default_output": 50}, {"default_output": 20}, None, 20),
        ({"default_output": 50}, {"max_output": 30}, None, 30),
        ({"max_output": 100}, {}, None, 100),
        ({"max_output": 100}, {}, 100, 100),
        ({"max_output": 100, "on_exceed": "clamp"}, {}, 101, 100),
        ({"max_output": 100, "on_exceed": "clamp"}, {"max_output": 80, "on_exceed": "clamp"}, 101, 80),
        ({"max_output": 100}, {"max_output": 80, "on_exceed": "clamp"}, 90, 80),
        ({"max_input": 100}, {}, None, None),
    ],
)
def test_the_smallest_limit_applies(
    of_model: dict[str, Any], of_key: dict[str, Any], requested: int | None, applied: int | None
) -> None:
    job = admitted(spec(of_model), principal(**of_key), conversation(max_tokens=requested))
    assert job.request.sampling.max_tokens == applied
    decision = job.decisions.token_limits
    if applied == requested:
        assert decision is None
        assert job.decisions.headers() == {}
    else:
        assert decision is not None
        assert (decision.requested_max_tokens, decision.max_tokens) == (requested, applied)
        assert job.decisions.headers() == {"x-headrace-max-tokens": str(applied)}


@pytest.mark.parametrize(
    ("of_model", "of_key", "requested", "message"),
    [
        (
            {"max_output": 100},
            {},
            101,
            "the model `m` allows at most 100 output tokens; got 101. Set it to 100 or less",
        ),
        ({}, {"max_output": 100}, 101, "this API key allows at most 100 output tokens; got 101."),
        ({"max_output": 100}, {"max_output": 80}, 101, "this API key allows at most 80 output tokens"),
        (
            {"max_output": 100},
            {"max_output": 80, "on_exceed": "clamp"},
            101,
            "the model `m` allows at most 100 output tokens; got 101. Set it to 80 or less, or leave it out",
        ),
    ],
)
def test_a_limit_that_refuses_is_not_clamped_by_another(
    of_model: dict[str, Any], of_key: dict[str, Any], requested: int, message: str
) -> None:
    error = refusal(spec(of_model), principal(**of_key), conversation(max_tokens=requested))
    assert error.param == "max_tokens"
    assert message in error.message


@pytest.mark.parametrize(
    ("dialect", "body", "param"),
    [
        (native, {"max_tokens": 11}, "max_tokens"),
        (chat, {"max_tokens": 11}, "max_tokens"),
        (chat, {"max_completion_tokens": 11}, "max_completion_tokens"),
        (responses, {"max_output_tokens": 11}, "max_output_tokens"),
        (messages, {"max_tokens": 11}, "max_tokens"),
    ],
)
def test_an_error_names_the_parameter_of_the_dialect(dialect: Dialect, body: dict[str, Any], param: str) -> None:
    content = "input" if dialect is responses else "messages"
    request, rename = dialect({content: [{"role": "user", "content": "x"}], **body})
    error = rename(refusal(spec({"max_output": 10}), principal(), request))
    assert error.param == param
    assert error.message.startswith(f"{param}: the model `m` allows at most 10 output tokens; got 11.")


def test_the_default_of_completions_is_not_refused() -> None:
    """Without max_tokens, OpenAI's completions have 16 tokens."""

    def completion(**parameters: Any) -> GenerateRequest:
        (request,) = CompletionRequest(model="m", prompt="x", **parameters).generate_requests()
        return request

    def applied(limits: dict[str, Any], **parameters: Any) -> int | None:
        return admitted(spec(limits), principal(), completion(**parameters)).request.sampling.max_tokens

    assert applied({}) == 16
    assert applied({"max_output": 20}) == 16
    assert applied({"max_output": 8}) == 8
    assert applied({"default_output": 20}) == 20
    assert refusal(spec({"max_output": 8}), principal(), completion(max_tokens=16)).param == "max_tokens"
    echo = completion(max_tokens=0, echo=True)
    assert admitted(spec({"max_output": 8, "default_output": 4}), principal(), echo).request == echo


def test_each_choice_may_have_the_limit() -> None:
    request = conversation(n=4, temperature=1.0, max_tokens=100)
    assert admitted(spec({"max_output": 100}), principal(), request).request.sampling.max_tokens == 100


def test_a_default_gives_way_to_min_tokens_up_to_the_limit() -> None:
    limits = {"default_output": 50, "max_output": 100}
    assert admitted(spec(limits), principal(), conversation(min_tokens=70)).request.sampling.max_tokens == 70
    for max_tokens in (None, 200):
        request = conversation(min_tokens=101, max_tokens=max_tokens)
        error = refusal(spec({**limits, "on_exceed": "clamp"}), principal(), request)
        assert error.message == (
            "min_tokens: a limit of 100 output tokens applies to this request; got 101. Set it to 100 or less"
        )


def test_a_default_fits_the_context() -> None:
    limits = {"default_output": 5000}
    job = admitted(spec(limits, max_model_len=1000), principal(), conversation("a b c"))
    assert job.request.sampling.max_tokens == 1000 - 5  # the simulated engine counts "user: a b c" and one more
    vllm = VllmModel.model_validate(
        {"name": "m", "engine": "vllm", "model": "/m", "options": {"max_model_len": 1000}, "token_limits": limits}
    )
    assert admitted(vllm, principal(), conversation("a b c")).request.sampling.max_tokens == 1000, "it ends there"


def test_a_default_fits_beside_an_estimated_prompt() -> None:
    """An upstream would refuse a max_tokens that does not fit; the client did not set it."""
    model = relayed(options={"max_model_len": 2000}, token_limits={"max_output": 1500})
    short, long = conversation("x" * 300), conversation("x" * 3000)
    job = admitted(model, principal(), short)
    assert job.request.sampling.max_tokens == 1500
    assert job.decisions.estimated_tokens == 122, "364 bytes / 3"
    job = admitted(model, principal(), long)
    assert job.request.sampling.max_tokens == 2000 - 1022
    assert job.decisions.token_limits is not None
    assert job.decisions.token_limits.max_tokens == 2000 - 1022


@pytest.mark.parametrize(
    ("length", "limits", "least"),
    [
        (8192, {"default_output": 1000}, 500),
        (8192, {"max_output": 6000}, 1024),
        (8192, {"default_output": 1000, "max_output": 1000}, 500),
        (2000, {"max_output": 1500}, 250),
        (128_000, {"default_output": 4000}, 2000),
    ],
)
def test_an_estimate_that_is_too_high_leaves_room_for_an_answer(
    length: int, limits: dict[str, int], least: int
) -> None:
    model = relayed(options={"max_model_len": length}, token_limits=limits)
    most = min(limits.values())
    before = most
    for share in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1, 1.1, 1.3):
        prompt = conversation("word " * int(length * share * 3 / 5))  # by its size, so many tokens
        applied = admitted(model, principal(), prompt).request.sampling.max_tokens
        assert applied is not None
        assert least <= applied <= before
        estimate = int(len(prompt.messages[0].text) / 3) + 22 if prompt.messages else 0
        assert applied == pytest.approx(max(least, min(most, length - estimate)), abs=2)
        before = applied
    assert before == least


def test_a_thinking_budget_is_lowered_in_proportion() -> None:
    model = claude("claude-haiku-4-5", token_limits={"max_output": 4000, "on_exceed": "clamp"})

    def applied(**sampling: Any) -> tuple[int | None, int | None]:
        job = admitted(model, principal(), conversation(**sampling))
        return job.request.sampling.max_tokens, job.request.sampling.thinking_token_budget

    assert applied(max_tokens=16_000, thinking_token_budget=8000) == (4000, 2000)
    assert applied(max_tokens=16_000, thinking_token_budget=2000) == (4000, 2000), "it fits"
    assert applied(max_tokens=64_000, thinking_token_budget=5000) == (4000, 1024), "the provider's least budget"
    decision = admitted(model, principal(), conversation(max_tokens=16_000, thinking_token_budget=8000)).decisions
    assert decision.token_limits is not None
    assert decision.token_limits.thinking_token_budget == 2000


@pytest.mark.parametrize("requested", [None, 16_000])
def test_a_limit_without_room_for_thinking_is_an_error(requested: int | None) -> None:
    model = claude("claude-haiku-4-5", token_limits={"max_output": 1000, "on_exceed": "clamp"})
    error = refusal(model, principal(), conversation(max_tokens=requested, thinking_token_budget=2000))
    assert error.param == "thinking_token_budget"
    assert "a limit of 1000 output tokens applies" in error.message


def test_a_default_leaves_room_for_the_answer_beside_thinking() -> None:
    model = claude("claude-haiku-4-5", token_limits={"default_output": 1000})
    job = admitted(model, principal(), conversation(thinking_token_budget=2000))
    assert job.request.sampling.max_tokens == 3000


def test_a_default_is_within_what_the_model_accepts() -> None:
    model = claude("claude-3-5-haiku", token_limits={"default_output": 100_000})
    assert admitted(model, principal(), conversation()).request.sampling.max_tokens == 8192
    unchanged = claude("claude-3-5-haiku", token_limits={"max_output": 10_000})
    assert admitted(unchanged, principal(), conversation()).request.sampling.max_tokens is None, "the engine sets 8192"


def test_a_model_without_max_tokens_has_no_limit_of_output() -> None:
    model = TritonModel.model_validate(
        {
            "name": "m",
            "engine": "triton",
            "model": "m",
            "options": {"base_url": "http://localhost:1", "backend": "python", "parameters": {"max_tokens": None}},
        }
    )
    request = GenerateRequest(prompt="x")
    assert admitted(model, principal(max_output=10), request).request.sampling.max_tokens is None


async def test_a_prompt_is_counted_with_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    template = (
        "{% for tool in tools or [] %}<tool> {{ tool.function.name }} {% endfor %}"
        "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    model = VllmModel.model_validate(
        {"name": "m", "engine": "vllm", "model": str(tmp_path), "token_limits": {"max_input": 10}}
    )
    fits = admitted(model, principal(), conversation("word " * 9))
    assert fits.decisions.headers() == {}, "counted, not estimated"
    error = refusal(model, principal(), conversation("word " * 10))
    assert error.message == (
        "messages: the model `m` allows prompts of at most 10 tokens; this one has 11. Send a shorter conversation"
    )
    key = principal(max_input=5)
    assert "this API key allows prompts of at most 5 tokens" in refusal(model, key, conversation("word " * 9)).message
    request, _ = chat(
        {
            "messages": [{"role": "user", "content": "word " * 8}],
            "tools": [{"type": "function", "function": {"name": "f"}}],
        }
    )
    registry = Registry({"m": model})
    with pytest.raises(InvalidRequest, match="has 11"):  # 2 of the tool, 9 of the message
        await TokenLimiter(registry, ContextWindow(registry)).check_input(principal(), NewJob(OWNER, "m", 3, request))


@pytest.mark.parametrize(
    "model", [relayed(token_limits={"max_input": 100}), claude("x", token_limits={"max_input": 100})]
)
def test_a_prompt_is_estimated_without_a_tokenizer(model: ModelSpec) -> None:
    job = admitted(model, principal(), conversation("x" * 100))
    assert job.decisions.estimated_tokens == 55, "164 bytes / 3"
    assert job.decisions.headers() == {"x-headrace-tokens-estimated": "true"}
    error = refusal(model, principal(), conversation("x" * 500))
    assert error.message == (
        "messages: the model `m` allows prompts of at most 100 tokens; this one has about 188, estimated from its size."
        " Send a shorter conversation"
    )


def test_token_ids_are_counted_for_any_model() -> None:
    model = relayed(token_limits={"max_input": 10}, preset="vllm")
    assert admitted(model, principal(), GenerateRequest(prompt=[1] * 10)).decisions.headers() == {}
    error = refusal(model, principal(), GenerateRequest(prompt=[1] * 11))
    assert error.param == "prompt"
    assert "has 11. Send a shorter prompt" in error.message


async def test_a_conversation_is_shortened_to_the_limit_of_input() -> None:
    model = spec({"max_input": 100}, max_model_len=100_000).model_copy(
        update={"context": ContextOptions(strategy="sliding_window")}
    )
    registry = Registry({"m": model})
    admission = Admission(registry, ContextWindow(registry))

    async def kept(messages: list[Message], **limits: Any) -> list[Message]:
        new = NewJob(OWNER, "m", 3, GenerateRequest(messages=messages))
        return (await admission.admit(principal(**limits), new)).request.messages or []

    turns = [("assistant" if number % 2 else "user", f"{number} " + "word " * 8) for number in range(41)]
    messages = [Message.model_validate({"role": role, "content": content}) for role, content in turns]
    ten = await kept(messages)
    assert ten[-1] == messages[-1]
    assert len(await kept(messages, max_input=50)) < len(ten) <= 10
    with pytest.raises(InvalidRequest, match="allows prompts of at most 100 tokens"):
        await kept([*messages[:-1], Message(role="user", content="word " * 200)])


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (
            {"engine": "simulated", "token_limits": {"on_exceed": "clamp"}},
            "on_exceed: has no effect without max_output",
        ),
        (
            {
                "engine": "triton",
                "model": "m",
                "options": {"base_url": "http://localhost:1", "backend": "python", "parameters": {"max_tokens": None}},
                "token_limits": {"max_output": 10},
            },
            "max_output: has no effect because the model takes no max_tokens",
        ),
        (
            {"engine": "simulated", "token_limits": {"default_output": 20, "max_output": 10}},
            "default_output: default_output must be at most max_output=10",
        ),
        ({"engine": "simulated", "token_limits": {"max_output": 0}}, "max_output: Input should be greater than"),
    ],
)
def test_limits_without_effect_are_errors_at_start(tmp_path: Path, entry: dict[str, Any], problem: str) -> None:
    with pytest.raises(RegistryError) as caught:
        load_registry(write_models(tmp_path / "models.yaml", [{"name": "m", **entry}]))
    assert "models[0].token_limits." + problem in str(caught.value)
    assert ", line " in str(caught.value)


def test_jobs_of_the_server_have_no_limits() -> None:
    registry = Registry({"m": spec({"max_output": 10, "max_input": 10})})
    admission = Admission(registry, ContextWindow(registry))
    new = NewJob(OWNER, "m", 3, conversation("word " * 20, max_tokens=100), kind="summary")
    admitted = run_now(admission.admit(principal(max_output=1), new))
    assert admitted == replace(new, log_level=LogLevel.METADATA)


def test_outcomes_are_counted() -> None:
    metrics = api_metrics("m")
    registry = Registry({"m": relayed(token_limits={"max_output": 10, "max_input": 50, "on_exceed": "clamp"})})
    admission = Admission(registry, ContextWindow(registry), metrics=metrics)

    def count(outcome: str) -> float:
        return float(metrics.token_limits.labels("m", outcome)._value.get())

    def admit(request: GenerateRequest, who: Principal | None = None) -> None:
        new = NewJob(OWNER, "m", 3, request)
        run_now(admission.recheck(who or principal(), new))
        run_now(admission.admit(who or principal(), new))

    admit(conversation())
    admit(conversation(max_tokens=5))
    assert (count("default"), count("clamped")) == (1, 0), "finding out why a job was rejected is not counted"
    admit(conversation(max_tokens=50))
    assert (count("default"), count("clamped")) == (1, 1)
    for request, who in (
        (conversation(max_tokens=9), principal(max_output=8)),
        (conversation("x" * 1000), principal()),
    ):
        with pytest.raises(InvalidRequest):
            run_now(admission.admit(who, NewJob(OWNER, "m", 3, request)))
    assert (count("refused_output"), count("refused_input")) == (1, 1)
    assert metrics.token_estimates.labels("m")._value.get() == 4


def given(limits: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in limits.items() if value is not None}


def limits_of(**limits: Any) -> dict[str, Any]:
    return given(limits if limits["max_output"] else {**limits, "on_exceed": None})


LIMITS = some.builds(
    limits_of,
    default_output=some.none() | some.integers(1, 50),
    max_output=some.none() | some.integers(50, 200),
    on_exceed=some.sampled_from(["clamp", "reject"]),
)


@example_count(200, long=20_000)
@hypothesis.given(
    of_model=LIMITS,
    of_key=LIMITS,
    requested=some.none() | some.integers(1, 300),
    min_tokens=some.integers(0, 300),
)
def test_no_request_exceeds_a_limit(
    of_model: dict[str, Any], of_key: dict[str, Any], requested: int | None, min_tokens: int
) -> None:
    if requested is not None:
        min_tokens = min(min_tokens, requested)
    ceilings = [limits["max_output"] for limits in (of_model, of_key) if "max_output" in limits]
    ceiling = min(ceilings, default=None)
    request = conversation(max_tokens=requested, min_tokens=min_tokens)
    try:
        job = admitted(spec(of_model), principal(**of_key), request)
    except InvalidRequest:
        assert ceiling is not None
        assert max(requested or 0, min_tokens) > ceiling, "nothing else is refused"
        return
    applied = job.request.sampling.max_tokens
    assert ceiling is None or (applied is not None and applied <= ceiling)
    assert applied is None or applied >= min_tokens
    if requested is not None and (ceiling is None or requested <= ceiling):
        assert applied == requested
