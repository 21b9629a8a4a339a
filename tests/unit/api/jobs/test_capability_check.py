"""Requests that their model cannot serve: a 400 with the parameter's name in each dialect, never a silent drop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.anthropic import error_params as anthropic_params
from api.anthropic.requests import generate_request
from api.anthropic.schemas import MessagesRequest
from api.batches.endpoints import ENDPOINTS
from api.jobs.capability_check import CapabilityCheck
from api.jobs.schemas import JobCreate
from api.openai.schemas import ChatCompletionRequest, CompletionRequest, ModelView
from api.responses import error_params as responses_params
from api.responses.messages import conversation
from api.responses.schemas import ResponseCreate
from shared.config.models.capabilities import EVERYTHING, Capabilities, Modality
from shared.config.models.loader import Registry
from shared.config.models.replicate import ReplicateModel
from shared.config.models.simulated import SimulatedModel
from shared.domain.content import FilePart, ImagePart, TextPart
from shared.domain.errors import InvalidRequest
from shared.domain.request import ChatOptions, GenerateRequest, Message, Sampling, StructuredOutputs

MESSAGES = [{"role": "user", "content": "x"}]
FUNCTION = {"name": "f", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALLED = [
    *MESSAGES,
    {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "c", "content": "1"},
]
CALLED_BLOCKS = [
    *MESSAGES,
    {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "1"}]},
]
CALLED_ITEMS = [
    {"role": "user", "content": "x"},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "1"},
]
SCHEMA = {"type": "object"}
SAMPLING = {
    "temperature": 0.5, "top_p": 0.5, "top_k": 4, "min_p": 0.1, "min_tokens": 2, "stop": ["x"], "seed": 1,
    "presence_penalty": 1.0, "frequency_penalty": 1.0, "repetition_penalty": 1.1, "logit_bias": {"5": 1.0},
    "thinking_token_budget": 9, "ignore_eos": True, "stop_token_ids": [1], "allowed_token_ids": [3],
    "bad_words": ["bad"], "include_stop_str_in_output": True, "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
}  # fmt: skip
CHAT_OPTIONS = {
    "parallel_tool_calls": False, "reasoning_effort": "low", "add_generation_prompt": False,
    "add_special_tokens": True, "chat_template_kwargs": {"a": 1}, "documents": [{"text": "x"}],
}  # fmt: skip
IN_RESPONSES = {
    "temperature", "top_p", "top_k", "min_p", "stop", "seed", "presence_penalty", "frequency_penalty",
    "repetition_penalty",
}  # fmt: skip


class Model(SimulatedModel):
    """A model with chosen capabilities."""

    chosen: Capabilities = EVERYTHING

    @property
    def capabilities(self) -> Capabilities:
        return self.chosen


def check(request: GenerateRequest, capabilities: Capabilities, **others: Capabilities) -> None:
    specs = {"m": capabilities, **others}
    models = {name: Model(name=name, engine="simulated", chosen=chosen) for name, chosen in specs.items()}
    CapabilityCheck(Registry(dict(models))).check("m", request)


# Each dialect: what validates a body and converts it, and what names its parameters in an error.
Dialect = Callable[[dict[str, Any]], tuple[GenerateRequest, Callable[[InvalidRequest], InvalidRequest]]]


def native(body: dict[str, Any]) -> tuple[GenerateRequest, Callable[[InvalidRequest], InvalidRequest]]:
    job = JobCreate.model_validate({"model": "m", **body})
    return job.generate_request(), job.rename_param


def chat(body: dict[str, Any]) -> tuple[GenerateRequest, Callable[[InvalidRequest], InvalidRequest]]:
    parsed = ChatCompletionRequest.model_validate({"model": "m", "messages": MESSAGES, **body})
    return parsed.generate_requests()[0], parsed.rename_param


def text(body: dict[str, Any]) -> tuple[GenerateRequest, Callable[[InvalidRequest], InvalidRequest]]:
    parsed = CompletionRequest.model_validate({"model": "m", "prompt": "x", **body})
    return parsed.generate_requests()[0], parsed.rename_param


def messages(body: dict[str, Any]) -> tuple[GenerateRequest, Callable[[InvalidRequest], InvalidRequest]]:
    parsed = MessagesRequest.model_validate({"model": "m", "max_tokens": 2000, "messages": MESSAGES, **body})
    return generate_request(parsed), partial(anthropic_params.rename_param, parsed)


def responses(body: dict[str, Any]) -> tuple[GenerateRequest, Callable[[InvalidRequest], InvalidRequest]]:
    parsed = ResponseCreate.model_validate({"model": "m", "input": "x", **body})
    return parsed.generate_request(conversation(None, None, parsed.input)), responses_params.rename_param


def line(endpoint: str) -> Dialect:
    """A line of a batch."""

    def of(body: dict[str, Any]) -> tuple[GenerateRequest, Callable[[InvalidRequest], InvalidRequest]]:
        given = {"/v1/responses": {"input": "x"}, "/v1/completions": {"prompt": "x"}}
        request = ENDPOINTS[endpoint].job({"model": "m", **given.get(endpoint, {"messages": MESSAGES}), **body}).request
        return request, lambda error: ENDPOINTS[endpoint].rename_param(request, error)

    return of


def without(capability: str, name: str) -> Capabilities:
    return replace(EVERYTHING, **{capability: getattr(EVERYTHING, capability) - {name}})


def cases() -> list[Any]:
    """A capability that is missing, a dialect, a body that needs it, and the parameter in the error."""
    found: list[tuple[str, Capabilities, Dialect, dict[str, Any], str]] = []

    def add(name: str, missing: Capabilities, *variants: tuple[Dialect, dict[str, Any], str]) -> None:
        found.extend((name, missing, *variant) for variant in variants)
        lines = {chat: "/v1/chat/completions", text: "/v1/completions", responses: "/v1/responses"}
        for dialect, body, param in variants:
            if dialect in lines:
                # The line's job does not tell both parameters for JSON apart.
                is_json = {"json", "json_object"} & body.get("structured_outputs", {}).keys()
                named = "response_format" if is_json else param
                found.append((f"{name}-line", missing, line(lines[dialect]), body, named))

    for name, value in SAMPLING.items():
        given, missing = {name: value}, without("sampling", name)
        add(name, missing, (native, {**given, "messages": MESSAGES}, name), (chat, given, name), (text, given, name))
        if name in IN_RESPONSES:
            add(name, missing, (responses, given, name))
        if name in ("temperature", "top_p", "top_k"):
            add(name, missing, (messages, given, name))
    add("stop", without("sampling", "stop"), (messages, {"stop_sequences": ["x"]}, "stop_sequences"))
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
    add("thinking", without("sampling", "thinking_token_budget"), (messages, thinking, "thinking.budget_tokens"))
    for name, value in CHAT_OPTIONS.items():
        given = {name: value, "tools": TOOLS}
        add(name, without("chat_options", name), (native, {**given, "messages": MESSAGES}, name), (chat, given, name))
    add(
        "effort",
        without("chat_options", "reasoning_effort"),
        (messages, {"output_config": {"effort": "low"}}, "output_config.effort"),
        (responses, {"reasoning": {"effort": "low"}}, "reasoning.effort"),
    )
    add(
        "one call",
        without("chat_options", "parallel_tool_calls"),
        (
            messages,
            {
                "tools": [{"name": "f", "input_schema": SCHEMA}],
                "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
            },
            "tool_choice.disable_parallel_tool_use",
        ),
    )
    structures: dict[str, Any] = {
        "json": SCHEMA, "regex": "a", "choice": ["a"], "grammar": "a", "json_object": True, "structural_tag": "{}",
    }  # fmt: skip
    for name, value in structures.items():
        given = {"structured_outputs": {name: value}}
        missing = without("structures", "json_schema" if name == "json" else name)
        add(
            name,
            missing,
            (native, {**given, "messages": MESSAGES}, "structured_outputs"),
            (chat, given, "structured_outputs"),
            (text, given, "structured_outputs"),
        )
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    format_ = {"type": "json_schema", "name": "n", "schema": SCHEMA}
    add(
        "format",
        without("structures", "json_schema"),
        (native, {"response_format": schema, "messages": MESSAGES}, "response_format"),
        (chat, {"response_format": schema}, "response_format"),
        (text, {"response_format": schema}, "response_format"),
        (messages, {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}, "output_config.format"),
        (responses, {"text": {"format": format_}}, "text.format"),
    )
    tools = {"tools": TOOLS}
    item = {"tools": [{"type": "function", **FUNCTION}]}
    block = {"tools": [{"name": "f", "input_schema": SCHEMA}]}
    no_tools = replace(EVERYTHING, tools=False)
    add(
        "tools",
        no_tools,
        (native, {**tools, "messages": MESSAGES}, "tools"),
        (chat, tools, "tools"),
        (messages, block, "tools"),
        (responses, item, "tools"),
    )
    add(
        "earlier calls",
        no_tools,
        (native, {"messages": CALLED}, "messages"),
        (chat, {"messages": CALLED}, "messages"),
        (messages, {"messages": CALLED_BLOCKS}, "messages"),
        (responses, {"input": CALLED_ITEMS}, "input"),
    )
    for kind, choice, block_choice, item_choice in (
        ("auto", "auto", {"type": "auto"}, "auto"),
        ("none", "none", {"type": "none"}, "none"),
        ("required", "required", {"type": "any"}, "required"),
        (
            "named",
            {"type": "function", "function": {"name": "f"}},
            {"type": "tool", "name": "f"},
            {"type": "function", "name": "f"},
        ),
    ):
        add(
            f"choice {kind}",
            without("tool_choices", kind),
            (native, {**tools, "tool_choice": choice, "messages": MESSAGES}, "tool_choice"),
            (chat, {**tools, "tool_choice": choice}, "tool_choice"),
            (messages, {**block, "tool_choice": block_choice}, "tool_choice"),
            (responses, {**item, "tool_choice": item_choice}, "tool_choice"),
        )
    add("raw", replace(EVERYTHING, raw_prompts=False), (native, {"prompt": "x"}, "prompt"), (text, {}, "prompt"))
    add(
        "conversation",
        replace(EVERYTHING, conversations=False),
        (native, {"messages": MESSAGES}, "messages"),
        (chat, {}, "messages"),
        (messages, {}, "messages"),
        (responses, {}, "input"),
    )
    ids = {"prompt": [1, 2]}
    add("ids", replace(EVERYTHING, token_prompts=False), (native, ids, "prompt"), (text, ids, "prompt"))
    add("echo", replace(EVERYTHING, echo=False), (chat, {"echo": True}, "echo"), (text, {"echo": True}, "echo"))
    prefill = {
        "messages": [*MESSAGES, {"role": "assistant", "content": "a"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    }
    add(
        "prefill",
        replace(EVERYTHING, prefill=False),
        (native, prefill, "continue_final_message"),
        (chat, prefill, "continue_final_message"),
        (messages, {"messages": prefill["messages"]}, "messages"),
    )
    named = [*MESSAGES, {"role": "user", "content": "x", "name": "Ann"}]
    add(
        "names",
        replace(EVERYTHING, names=False),
        (native, {"messages": named}, "messages[1].name"),
        (chat, {"messages": named}, "messages[1].name"),
    )
    blank = [{"role": "system", "content": "x"}, {"role": "user", "content": " "}]
    add(
        "system only",
        replace(EVERYTHING, system_only=False),
        (native, {"messages": blank}, "messages"),
        (chat, {"messages": blank}, "messages"),
        (messages, {"system": "x", "messages": blank[1:]}, "messages"),
        (responses, {"input": blank}, "input"),
    )
    answered = [*MESSAGES, {"role": "assistant", "content": "a"}]
    for ended in (answered, [*answered, {"role": "system", "content": "s"}], [*answered, blank[1]]):
        add(
            "trailing assistant",
            replace(EVERYTHING, trailing_assistant=False),
            (native, {"messages": ended}, "messages"),
            (chat, {"messages": ended}, "messages"),
            (responses, {"input": ended}, "input"),
        )
    stops = {"stop": ["a", "b"]}
    add(
        "stops",
        replace(EVERYTHING, max_stops=1),
        (native, {**stops, "messages": MESSAGES}, "stop"),
        (chat, stops, "stop"),
        (text, stops, "stop"),
        (messages, {"stop_sequences": ["a", "b"]}, "stop_sequences"),
        (responses, stops, "stop"),
    )
    for limited in (replace(EVERYTHING, max_tools=0), replace(EVERYTHING, max_tool_name=0)):
        add(
            "tool limits",
            limited,
            (native, {**tools, "messages": MESSAGES}, "tools"),
            (chat, tools, "tools"),
            (messages, block, "tools"),
            (responses, item, "tools"),
        )
    no_limit = replace(EVERYTHING, max_tokens=False)
    add(
        "max_tokens",
        no_limit,
        (native, {"messages": MESSAGES, "max_tokens": 5}, "max_tokens"),
        (chat, {"max_tokens": 5}, "max_tokens"),
        (text, {"max_tokens": 5}, "max_tokens"),
        (messages, {}, "max_tokens"),
        (responses, {"max_output_tokens": 5}, "max_output_tokens"),
    )
    add(
        "tools with structure",
        replace(EVERYTHING, tools_with_structure=False),
        (native, {**tools, "response_format": schema, "messages": MESSAGES}, "response_format"),
        (chat, {**tools, "response_format": schema}, "response_format"),
        (messages, {**block, "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
         "output_config.format"),
        (responses, {**item, "text": {"format": format_}}, "text.format"),
    )  # fmt: skip
    no_effort = without("chat_options", "reasoning_effort")
    add(
        "no effort",
        no_effort,
        (native, {"messages": MESSAGES, "reasoning_effort": "none"}, "reasoning_effort"),
        (chat, {"reasoning_effort": "none"}, "reasoning_effort"),
        (messages, {"thinking": {"type": "disabled"}}, "thinking.type"),
        (responses, {"reasoning": {"effort": "none"}}, "reasoning.effort"),
    )
    add(
        "temperature of 1",
        without("sampling", "temperature"),
        (native, {"messages": MESSAGES, "temperature": 1}, "temperature"),
        (messages, {"temperature": 1.0}, "temperature"),
    )
    add(
        "n",
        replace(EVERYTHING, max_choices=2),
        (native, {"n": 3, "messages": MESSAGES}, "n"),
        (chat, {"n": 3}, "n"),
        (text, {"n": 3}, "n"),
    )
    for most, number in ((None, 0), (3, 4)):
        log = {"logprobs": True, "top_logprobs": number}
        include = {"include": ["message.output_text.logprobs"], "top_logprobs": number}
        add(
            f"logprobs {most}",
            replace(EVERYTHING, logprobs=most),
            (native, {"logprobs": number, "messages": MESSAGES}, "logprobs"),
            (chat, log, "logprobs" if most is None else "top_logprobs"),
            (line("/v1/chat/completions"), log, "logprobs" if most is None else "top_logprobs"),
            (text, {"logprobs": number}, "logprobs"),
            (line("/v1/completions"), {"logprobs": number}, "logprobs"),
            (responses, include, "include" if most is None else "top_logprobs"),
            (line("/v1/responses"), include, "include" if most is None else "top_logprobs"),
        )
        given = {"prompt_logprobs": number}
        add(
            f"prompt_logprobs {most}",
            replace(EVERYTHING, prompt_logprobs=most),
            (native, {**given, "messages": MESSAGES}, "prompt_logprobs"),
            (chat, given, "prompt_logprobs"),
            (text, given, "prompt_logprobs"),
            (text, {"echo": True, "logprobs": number}, "logprobs"),
        )
    return [
        pytest.param(*rest, id=f"{name}-{getattr(rest[1], '__name__', 'x')}-{position}")
        for position, (name, *rest) in enumerate(found)
    ]


@pytest.mark.parametrize(("missing", "dialect", "body", "param"), cases())
def test_what_a_model_cannot_serve_is_refused(
    missing: Capabilities, dialect: Dialect, body: dict[str, Any], param: str
) -> None:
    request, rename = dialect(body)
    check(request, EVERYTHING)
    with pytest.raises(InvalidRequest) as caught:
        check(request, missing, able=EVERYTHING, other=missing)
    error = rename(caught.value)
    assert error.param == param
    assert error.message.startswith(f"{param}: the model `m` does not support ")
    assert error.message.endswith("; models that can serve this request: able")
    with pytest.raises(InvalidRequest, match="; no configured model can"):
        check(request, missing, other=missing)


def test_every_capability_of_a_request_is_checked() -> None:
    """The names that requests can have are covered by the cases above, and so is each capability.

    Images, files and parameters of a provider, which no model takes without an option, are tested in `test_media`.
    """
    assert SAMPLING.keys() == Sampling.model_fields.keys() - {"n", "max_tokens"}
    assert CHAT_OPTIONS.keys() == EVERYTHING.chat_options
    assert EVERYTHING.structures == StructuredOutputs.model_fields.keys()
    unchecked = {
        "resume", "continues", "cancel", "usage", "token_counting", "signed_reasoning", "modalities", "image_sources",
        "tool_media",
        "file_sources", "file_types", "extra_body", "fixed_temperature", "never_reasons",
    }  # fmt: skip
    changed = {
        name
        for case in cases()
        for name in (field.name for field in fields(Capabilities))
        if getattr(case.values[0], name) != getattr(EVERYTHING, name)
    }
    assert changed == {field.name for field in fields(Capabilities)} - unchecked


@pytest.mark.parametrize(("kind", "part"), [("image", ImagePart), ("file", FilePart)])
def test_images_and_files_need_their_modality(kind: Modality, part: type[ImagePart | FilePart]) -> None:
    content = [TextPart(type="text", text="x"), part.model_validate({"type": kind, "url": "https://example.com/x"})]
    request = GenerateRequest(messages=[Message(role="user", content=content)])
    seeing = replace(EVERYTHING, modalities=frozenset({"text", kind}))
    check(request, seeing)
    with pytest.raises(InvalidRequest) as caught:
        check(request, EVERYTHING, able=seeing)
    assert caught.value.param == "messages"
    assert caught.value.message == (
        f"messages: the model `m` does not support {kind}s; models that can serve this request: able"
    )


@pytest.mark.parametrize(
    "sampling",
    [
        {"top_p": 1.0}, {"top_k": 0}, {"top_k": -1}, {"min_p": 0.0}, {"presence_penalty": 0.0}, {"stop": []},
        {"frequency_penalty": 0}, {"repetition_penalty": 1.0}, {"logit_bias": {}}, {"n": 1}, {"temperature": None},
        {"min_tokens": 0}, {"ignore_eos": False}, {"max_tokens": 5},
    ],
)  # fmt: skip
def test_values_without_effect_are_accepted_by_every_model(sampling: dict[str, Any]) -> None:
    nothing = Capabilities(sampling=frozenset())
    check(native({"messages": MESSAGES, **sampling})[0], nothing)


def test_a_temperature_of_1_is_accepted_by_models_that_always_sample_at_1() -> None:
    check(
        native({"messages": MESSAGES, "temperature": 1})[0], Capabilities(sampling=frozenset(), fixed_temperature=True)
    )


def test_the_newer_limit_of_tokens_is_named_as_the_client_sent_it() -> None:
    request, rename = chat({"max_completion_tokens": 5})
    with pytest.raises(InvalidRequest) as caught:
        check(request, Capabilities(max_tokens=False))
    assert rename(caught.value).param == "max_completion_tokens"


def test_the_name_of_a_tool_is_accepted_by_every_model() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    result = {"role": "tool", "tool_call_id": "c", "name": "f", "content": "1"}
    check(
        chat({"messages": [*MESSAGES, {"role": "assistant", "tool_calls": [call]}, result]})[0],
        Capabilities(tools=True),
    )


def test_chat_options_without_effect_are_accepted_by_every_model() -> None:
    options = {name: value for name, value in dict(ChatOptions()).items() if value is not None}
    body = {**options, "chat_template_kwargs": {}, "documents": [], "tool_choice": "none"}
    check(chat(body)[0], Capabilities())
    never = Capabilities(never_reasons=True)
    check(chat({**body, "reasoning_effort": "none"})[0], never)
    check(messages({"thinking": {"type": "disabled"}})[0], never)
    check(native({"messages": MESSAGES, "include_reasoning": False})[0], Capabilities())


@given(st.sets(st.sampled_from(sorted(SAMPLING))), st.sets(st.sampled_from(sorted(SAMPLING))))
def test_a_request_is_served_exactly_if_all_its_parameters_are(given_: set[str], supported: set[str]) -> None:
    request = native({"messages": MESSAGES, **{name: SAMPLING[name] for name in given_}})[0]
    capabilities = replace(EVERYTHING, sampling=frozenset(supported))
    if given_ <= supported:
        check(request, capabilities)
    else:
        with pytest.raises(InvalidRequest) as caught:
            check(request, capabilities)
        assert caught.value.param in given_ - supported


def test_the_models_of_the_api_show_their_capabilities() -> None:
    view = ModelView.of(SimulatedModel(name="sim", engine="simulated"), 8192).model_dump(mode="json")
    assert view["capabilities"].keys() == {field.name for field in fields(Capabilities)}
    assert view["capabilities"]["structures"] == sorted(StructuredOutputs.model_fields)
    assert view["capabilities"]["tool_choices"] == ["auto", "named", "none", "required"]


def test_a_model_without_tools_has_no_tool_choices() -> None:
    model = ReplicateModel.model_validate({"name": "r", "engine": "replicate", "model": "owner/name"})
    shown = ModelView.of(model, None).model_dump(mode="json")["capabilities"]
    assert (shown["tools"], shown["tool_choices"]) == (False, [])
