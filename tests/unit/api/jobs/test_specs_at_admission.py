"""Requests that only some models of an engine can serve: a 400 with the parameter's name, and the models that can."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from api.anthropic import error_params as anthropic_params
from api.anthropic.requests import conversation as message_conversation
from api.anthropic.schemas import CountTokensRequest
from api.context.window import ContextWindow
from api.jobs.admission import Admission
from shared.config.models.anthropic import AnthropicModel
from shared.config.models.loader import ModelSpec, Registry
from shared.config.models.openai import OpenAIModel
from shared.config.models.replicate import ReplicateModel
from shared.config.models.simulated import SimulatedModel
from shared.config.models.triton import TritonModel
from shared.config.models.vllm import VllmModel
from shared.domain.errors import InvalidRequest
from shared.domain.request import Sampling
from tests.support.transcripts import run_now
from tests.unit.api.jobs.test_capability_check import Dialect, chat, messages, native, responses
from workers.engines.anthropic.request import request_body

ASK = [{"role": "user", "content": "x"}]
STARTED = [*ASK, {"role": "assistant", "content": "The answer is"}]


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


TOOLS = {"tools": [tool("f")]}
BLOCK_TOOLS = {"tools": [{"name": "f", "input_schema": {"type": "object"}}]}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
OFF = {"thinking": {"type": "disabled"}}
CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}


def claude(name: str, **options: Any) -> AnthropicModel:
    entry = {"name": name, "engine": "anthropic", "model": name, "options": options}
    return AnthropicModel.model_validate(entry)


def relayed(name: str, **entry: Any) -> OpenAIModel:
    options = {"base_url": "http://localhost:1/v1"}
    return OpenAIModel.model_validate({"name": name, "engine": "openai", "model": "m", "options": options, **entry})


CLAUDES = [
    claude(f"claude-{name}") for name in ("opus-5-5", "sonnet-5-5", "haiku-5-5", "sonnet-4-6", "haiku-4-5", "sonnet-4")
]
OTHERS: list[ModelSpec] = [
    *(relayed(preset, preset=preset) for preset in ("tgi", "vllm", "openai", "openrouter", "gemini")),
    relayed("gpt", preset="openai", api="responses"),
    ReplicateModel.model_validate(
        {"name": "llama", "engine": "replicate", "model": "a/b", "options": {"input": {"parameters": {}}}}
    ),
    ReplicateModel.model_validate(
        {
            "name": "limited",
            "engine": "replicate",
            "model": "a/b",
            "options": {
                "input": {"parameters": {"max_tokens": "max_tokens", "temperature": "temperature", "stop": "stop"}}
            },
        }
    ),
    VllmModel.model_validate({"name": "vllm-0", "engine": "vllm", "model": "/m"}),
    VllmModel.model_validate(
        {"name": "vllm-1", "engine": "vllm", "model": "/m", "chat": {"reasoning_parser": "deepseek_r1"}}
    ),
    TritonModel.model_validate(
        {
            "name": "own",
            "engine": "triton",
            "model": "m",
            "options": {"base_url": "http://localhost:1", "backend": "python", "parameters": {"max_tokens": None}},
        }
    ),
    SimulatedModel(name="sim", engine="simulated"),
]
REGISTRY = Registry({spec.name: spec for spec in [*CLAUDES, *OTHERS]})


async def admit(dialect: Dialect, name: str, body: dict[str, Any]) -> None:
    """Raises the error that the client sees."""
    request, rename = dialect(body)
    try:
        await Admission(REGISTRY, ContextWindow(REGISTRY)).check(name, request)
    except InvalidRequest as error:
        raise rename(error) from None


async def refused(dialect: Dialect, name: str, body: dict[str, Any], param: str) -> str:
    """The models that the error names."""
    with pytest.raises(InvalidRequest) as caught:
        await admit(dialect, name, body)
    error = caught.value
    assert error.param == param
    start, _, able = error.message.rpartition("; models that can serve this request: ")
    assert start.startswith(f"{param}: the model `{name}` does not support ")
    return able


ALWAYS, BETWEEN, ADAPTIVE, OLDER, BUDGET = (model.name for model in CLAUDES[:5])
REFUSED: list[tuple[Dialect, str, dict[str, Any], str]] = [
    # Thinking that cannot be turned off.
    (native, ALWAYS, {"messages": ASK, "reasoning_effort": "none"}, "reasoning_effort"),
    (chat, ALWAYS, {"reasoning_effort": "none"}, "reasoning_effort"),
    (messages, ALWAYS, OFF, "thinking.type"),
    (responses, ALWAYS, {"reasoning": {"effort": "none"}}, "reasoning.effort"),
    (chat, BETWEEN, {"reasoning_effort": "none", **TOOLS}, "reasoning_effort"),
    (messages, BETWEEN, {**OFF, **BLOCK_TOOLS}, "thinking.type"),
    (native, ALWAYS, {"messages": ASK, "thinking_token_budget": 0}, "thinking_token_budget"),
    # Efforts and budgets.
    (chat, OLDER, {"reasoning_effort": "xhigh"}, "reasoning_effort"),
    (messages, OLDER, {"output_config": {"effort": "xhigh"}}, "output_config.effort"),
    (native, BUDGET, {"messages": ASK, "thinking_token_budget": 1}, "thinking_token_budget"),
    (chat, BUDGET, {"thinking_token_budget": 1023}, "thinking_token_budget"),
    (chat, BUDGET, {"thinking_token_budget": 2000, "max_tokens": 2000}, "max_tokens"),
    (chat, BUDGET, {"thinking_token_budget": 2000, "max_completion_tokens": 2000}, "max_completion_tokens"),
    (native, BUDGET, {"messages": ASK, "thinking_token_budget": 64_000}, "thinking_token_budget"),
    (chat, BUDGET, {"reasoning_effort": "low", "max_tokens": 1024}, "max_tokens"),
    (responses, BUDGET, {"reasoning": {"effort": "low"}, "max_output_tokens": 500}, "max_output_tokens"),
    (messages, ADAPTIVE, {"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.budget_tokens"),
    # A forced tool call while it thinks.
    (chat, BUDGET, {**TOOLS, "tool_choice": "required", "reasoning_effort": "low"}, "tool_choice"),
    (chat, ADAPTIVE, {**TOOLS, "tool_choice": "required", "reasoning_effort": "low"}, "tool_choice"),
    (messages, BUDGET, {**BLOCK_TOOLS, "tool_choice": {"type": "any"},
                        "thinking": {"type": "enabled", "budget_tokens": 1024}}, "tool_choice"),
    (messages, ADAPTIVE, {**BLOCK_TOOLS, "tool_choice": {"type": "tool", "name": "f"},
                          "thinking": {"type": "adaptive"}}, "tool_choice"),
    (chat, ALWAYS, {**TOOLS, "tool_choice": "required"}, "tool_choice"),
    # A message of the assistant at the end.
    (native, ALWAYS, {"messages": STARTED}, "messages"),
    (chat, BUDGET, {"messages": STARTED}, "messages"),
    (responses, BUDGET, {"input": STARTED}, "input"),
    (chat, ALWAYS, {"messages": STARTED, **CONTINUE}, "continue_final_message"),
    (messages, ALWAYS, {"messages": STARTED}, "messages"),
    (chat, BUDGET, {"messages": STARTED, **CONTINUE, "reasoning_effort": "low"}, "continue_final_message"),
    (messages, BUDGET, {"messages": STARTED, "thinking": {"type": "enabled", "budget_tokens": 1024}}, "messages"),
    (chat, BUDGET, {"messages": STARTED, **CONTINUE, "response_format": SCHEMA}, "continue_final_message"),
    (chat, BUDGET, {"messages": STARTED, **CONTINUE, **TOOLS, "tool_choice": "required"}, "continue_final_message"),
    (messages, BUDGET, {"messages": [*ASK, {"role": "assistant", "content": "It is "}]}, "messages"),
    (chat, BUDGET, {"messages": ASK, "add_generation_prompt": False}, "add_generation_prompt"),
    # Values and combinations.
    (chat, BUDGET, {"temperature": 1.5}, "temperature"),
    (responses, BUDGET, {"temperature": 2}, "temperature"),
    (chat, ALWAYS, {"temperature": 0}, "temperature"),
    (chat, BUDGET, {"temperature": 0.5, "top_p": 0.5}, "top_p"),
    (chat, BUDGET, {"temperature": 0.5, "reasoning_effort": "low"}, "temperature"),
    (chat, BUDGET, {"top_k": 5, "reasoning_effort": "low"}, "top_k"),
    (chat, BUDGET, {"top_p": 0.9, "reasoning_effort": "low"}, "top_p"),
    (chat, ALWAYS, {"max_tokens": 128_001}, "max_tokens"),
    (messages, BUDGET, {"max_tokens": 64_001}, "max_tokens"),
    (responses, BUDGET, {"max_output_tokens": 64_001}, "max_output_tokens"),
    (chat, ALWAYS, {"stop": ["\n\n"]}, "stop"),
    (messages, ALWAYS, {"stop_sequences": ["END", " "]}, "stop_sequences"),
    (chat, ALWAYS, {"messages": [{"role": "user", "content": "x", "name": "Ann"}]}, "messages[0].name"),
    (chat, ALWAYS, {"messages": [{"role": "system", "content": "x"}]}, "messages"),
    (chat, ALWAYS, {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": " \n"}]}, "messages"),
    # Other engines.
    (chat, "tgi", {**TOOLS, "response_format": SCHEMA}, "response_format"),
    (messages, "tgi", {**BLOCK_TOOLS, "output_config": {"format": {"type": "json_schema", "schema": {}}}},
     "output_config.format"),
    (chat, "tgi", {"reasoning_effort": "none"}, "reasoning_effort"),
    (chat, "llama", {"reasoning_effort": "none"}, "reasoning_effort"),
    (chat, "llama", {"max_tokens": 5}, "max_tokens"),
    (messages, "llama", {"max_tokens": 5}, "max_tokens"),
    (native, "own", {"prompt": "x", "max_tokens": 5}, "max_tokens"),
    (chat, "llama", {"temperature": 1}, "temperature"),
    (chat, "limited", {"messages": [{"role": "user", "content": "x", "name": "Ann"}]}, "messages[0].name"),
    (chat, "openai", {"stop": list("abcde")}, "stop"),
    (chat, "openai", {"tools": [tool(f"f{number}") for number in range(129)]}, "tools"),
    (chat, "openai", {"tools": [tool("f" * 65)]}, "tools"),
    (messages, "openai", {"tools": [{"name": "f" * 65, "input_schema": {"type": "object"}}]}, "tools"),
    (chat, "gemini", {"stop": list("abcdef")}, "stop"),
    (chat, "vllm-0", {"thinking_token_budget": 5}, "thinking_token_budget"),
    (messages, "vllm-0", {"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.budget_tokens"),
    (chat, "limited", {"stop": ["a", "b,c"]}, "stop"),
    (chat, "gpt", {"messages": [*ASK, {"role": "user", "content": "x", "name": "Ann"}]}, "messages[1].name"),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "name", "body", "param"), REFUSED)
async def test_what_a_model_cannot_serve_is_refused_at_admission(
    dialect: Dialect, name: str, body: dict[str, Any], param: str
) -> None:
    able = await refused(dialect, name, body, param)
    assert name not in able.split(", ")
    for other in able.split(", "):
        await admit(dialect, other, body)


@pytest.mark.parametrize(
    ("dialect", "name", "body"),
    [
        (chat, ADAPTIVE, {"reasoning_effort": "none"}),
        (chat, BETWEEN, {"reasoning_effort": "none"}),
        (chat, ADAPTIVE, {**TOOLS, "tool_choice": "required"}),
        (messages, ALWAYS, {"thinking": {"type": "adaptive"}, **BLOCK_TOOLS}),
        (messages, BUDGET, {"messages": STARTED}),
        (chat, BUDGET, {"messages": STARTED, **CONTINUE}),
        (chat, BUDGET, {"reasoning_effort": "low", "temperature": 1, "top_p": 0.95}),
        (chat, BUDGET, {"reasoning_effort": "low", "max_tokens": 1025}),
        (chat, "claude-sonnet-4", {"temperature": 0.5, "top_p": 0.5}),
        (chat, ALWAYS, {"temperature": 1, "top_p": 1, "top_k": -1, "presence_penalty": 0}),
        (chat, ALWAYS, {"max_tokens": 128_000}),
        (responses, ALWAYS, {"reasoning": {"effort": "max"}}),
        (native, "llama", {"messages": ASK}),
        (chat, "limited", {"max_tokens": 5, "temperature": 1}),
        (chat, "tgi", TOOLS),
    ],
)  # fmt: skip
async def test_what_a_model_can_serve_is_admitted(dialect: Dialect, name: str, body: dict[str, Any]) -> None:
    await admit(dialect, name, body)


@pytest.mark.parametrize(("dialect", "name", "body"), [case[:3] for case in REFUSED if case[1].startswith("claude")])
async def test_the_engine_of_claude_refuses_the_same(dialect: Dialect, name: str, body: dict[str, Any]) -> None:
    """A job may run after its model's entry has changed."""
    spec = REGISTRY[name]
    assert isinstance(spec, AnthropicModel)
    with pytest.raises(InvalidRequest):
        run_now(request_body(dialect(body)[0], spec))


def image(source: str) -> dict[str, Any]:
    value = {"url": {"type": "url", "url": "https://a/b"}, "file": {"type": "file", "file_id": "f1"}}[source]
    return {"messages": [{"role": "user", "content": [{"type": "image", "source": value}]}]}


def document(**source: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "document", "source": source}]}]}


def file(media_type: str, data: bytes = b"a,b") -> dict[str, Any]:
    data_url = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    part = {"type": "file", "file": {"file_data": data_url, "filename": "a"}}
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]}


FILE_URL = {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "https://a/b.pdf"}]}]}


@pytest.mark.parametrize(
    ("dialect", "name", "body", "param", "able"),
    [
        (messages, "openai", image("file"), "messages[0].content[0]", [*(m.name for m in CLAUDES), "gpt"]),
        (messages, "openai", document(type="url", url="https://a/b"), "messages[0].content[0]",
         [*(m.name for m in CLAUDES), "openrouter", "gpt"]),
        (responses, "openai", FILE_URL, "input[0].content[0]", [*(m.name for m in CLAUDES), "openrouter", "gpt"]),
        (chat, ALWAYS, file("application/msword"), "messages[0].content[1]", ["openai", "openrouter", "gpt"]),
        (chat, ALWAYS, file("application/rtf"), "messages[0].content[1]", ["openai", "openrouter", "gpt"]),
    ],
)  # fmt: skip
async def test_sources_and_types_of_files(
    dialect: Dialect, name: str, body: dict[str, Any], param: str, able: list[str]
) -> None:
    assert (await refused(dialect, name, body, param)).split(", ") == able


async def test_images_in_results_of_tools() -> None:
    image = {"type": "image", "source": {"type": "url", "url": "https://a/b"}}
    turns = [
        *ASK,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": [image]}]},
    ]
    able = await refused(messages, "openai", {"messages": turns}, "messages[2].content[0].content[0]")
    assert able.split(", ") == [*(model.name for model in CLAUDES), "gpt"]


@pytest.mark.parametrize("media_type", ["text/csv", "text/x-anything", "application/json", "application/xml"])
async def test_claude_takes_files_of_text(media_type: str) -> None:
    await admit(chat, ALWAYS, file(media_type))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (OFF, "thinking.type"),
        ({**BLOCK_TOOLS, "tool_choice": {"type": "any"}}, "tool_choice"),
        ({"messages": STARTED}, "messages"),
    ],
)
async def test_counting_tokens_checks_the_same(body: dict[str, Any], param: str) -> None:
    parsed = CountTokensRequest.model_validate({"model": ALWAYS, "messages": ASK, **body})
    with pytest.raises(InvalidRequest) as caught:
        await Admission(REGISTRY, ContextWindow(REGISTRY)).count_tokens(ALWAYS, message_conversation(parsed))
    assert anthropic_params.rename_param(parsed, caught.value).param == param


async def test_a_job_that_only_counts_has_no_limit_of_tokens() -> None:
    parsed = CountTokensRequest.model_validate({"model": BUDGET, "messages": ASK, "output_config": {"effort": "low"}})
    update = {"prompt_only": True, "sampling": Sampling(max_tokens=1)}
    await Admission(REGISTRY, ContextWindow(REGISTRY)).check(
        BUDGET, message_conversation(parsed).model_copy(update=update)
    )
