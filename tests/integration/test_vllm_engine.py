"""What the real engine does beside text: tools, structured outputs, logprobs; refused, cut, and gone on with."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import aclosing
from typing import Any

import jsonschema
import pytest

from shared.errors import InvalidRequest
from shared.events import Delta, Transcript
from shared.job import Choice
from shared.registry import ChatSettings
from shared.sampling import ChatOptions, Function, GenerateRequest, Message, Sampling, StructuredOutputs, Tool
from shared.stream import JobLog
from tests.support.real_engine import SMOLLM2
from workers.engines.base import EngineError, GoesOn, PromptInfo, Restarted

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.vllm,
    # torch and vLLM warn about themselves at import.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

MODEL = SMOLLM2
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "unit": {"type": "string", "enum": ["celsius", "kelvin"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TOOLS = [
    Tool(function=Function(name="weather", description="The weather in a city", parameters=WEATHER, strict=True)),
    Tool(function=Function(name="tide", parameters={"type": "object", "additionalProperties": False}, strict=True)),
]
LOOSE = Tool(function=Function(name="weather", parameters=WEATHER))
ASKED = [Message(role="user", content="What is the weather in Paris?")]
CALL = r'<tool_call>\n\{"name": "weather", "arguments": \{"city": "[A-Z][a-z]{2,6}", "unit": "kelvin"\}\}\n</tool_call>'


@pytest.fixture
def engine(real_engine: Any) -> Any:
    return real_engine


def asked(messages: list[Message] | None = None, **fields: Any) -> GenerateRequest:
    sampling = {"temperature": 0, "max_tokens": 24, **fields.pop("sampling", {})}
    if "prompt" not in fields:
        fields["messages"] = ASKED if messages is None else messages
    return GenerateRequest(sampling=Sampling(**sampling), **fields)


def tools(choice: Any, **fields: Any) -> GenerateRequest:
    options = {"tools": TOOLS, "tool_choice": choice, **fields.pop("chat", {})}
    sampling = {"max_tokens": 128, **fields.pop("sampling", {})}
    return asked(chat=ChatOptions(**options), sampling=sampling, **fields)


def must_be(sampling: dict[str, Any] | None = None, **wanted: Any) -> GenerateRequest:
    sampling = {"max_tokens": 128, **(sampling or {})}
    return asked(structured_outputs=StructuredOutputs(**wanted), sampling=sampling)


async def outputs(engine: Any, request: GenerateRequest, so_far: list[Delta] | None = None, attempt: int = 1) -> Any:
    """The prompt's info, and the deltas; `Restarted` among them."""
    async with aclosing(engine.generate(f"job_7-{attempt}", request, so_far or [])) as items:
        prompt, *made = [item async for item in items]
    assert isinstance(prompt, PromptInfo)
    return prompt, made


async def deltas(engine: Any, request: GenerateRequest) -> list[Delta]:
    made: list[Delta] = (await outputs(engine, request))[1]
    return made


def whole(made: list[Delta], choices: int = 1) -> tuple[Choice, ...]:
    transcript = Transcript(choices)
    for delta in made:
        transcript.add(delta)
    return transcript.choices()


async def answer(engine: Any, request: GenerateRequest) -> Choice:
    (choice,) = whole(await deltas(engine, request))
    return choice


@pytest.mark.parametrize("field", ["tool_call_parser", "reasoning_parser"])
async def test_a_parser_that_does_not_exist_is_told_before_the_model_is_loaded(field: str) -> None:
    from workers.engines.vllm.engine import VllmEngine

    chat = ChatSettings.model_validate({field: "nobody"})
    with pytest.raises(InvalidRequest, match=rf"smollm2\.chat\.{field}: vLLM has no 'nobody'; it has .*deepseek"):
        await VllmEngine(MODEL.model_copy(update={"chat": chat})).start()


async def test_a_parser_that_the_tokenizer_cannot_do_says_where(engine: Any) -> None:
    from workers.engines.vllm.rendering import Rendering

    model = MODEL.model_copy(update={"chat": ChatSettings(reasoning_parser="deepseek_r1")})
    with pytest.raises(InvalidRequest, match=r"models\.yaml: smollm2\.chat: .*think"):
        Rendering(model, None, engine._llm)


class TestTools:
    async def test_a_required_tool_is_called(self, engine: Any) -> None:
        choice = await answer(engine, tools("required", chat={"parallel_tool_calls": False}))
        assert (choice.finish_reason, choice.text) == ("tool_calls", "")
        (call,) = choice.tool_calls
        assert call.id
        schemas = {tool.function.name: tool.function.parameters for tool in TOOLS}
        jsonschema.validate(json.loads(call.arguments), schemas[call.name])

    async def test_the_named_tool_is_called_and_the_answer_just_stops(self, engine: Any) -> None:
        """As vLLM's server, and OpenAI's, say it."""
        choice = await answer(engine, tools({"name": "weather"}))
        assert choice.finish_reason == "stop"
        (call,) = choice.tool_calls
        assert call.name == "weather"
        jsonschema.validate(json.loads(call.arguments), WEATHER)

    async def test_calls_that_the_model_chose_are_parsed(self, engine: Any) -> None:
        """What this small model calls, and with what, makes little sense: vLLM holds it to the calls' form alone."""
        made = await deltas(engine, tools("auto", structured_outputs=StructuredOutputs(regex=CALL)))
        (choice,) = whole(made)
        assert choice.finish_reason == "tool_calls"
        fragments = [fragment for delta in made for fragment in delta.tool_calls]
        assert len(fragments) > 2 * len(choice.tool_calls)
        assert [fragment.id for fragment in fragments if fragment.id] == [call.id for call in choice.tool_calls]
        for call in choice.tool_calls:
            assert call.name in {tool.function.name for tool in TOOLS}
            assert isinstance(json.loads(call.arguments), dict)

    async def test_text_where_no_tool_is_called(self, engine: Any) -> None:
        plain = await answer(engine, asked(sampling={"max_tokens": 12}))
        for choice in ("auto", "none"):
            told = await answer(engine, tools(choice, sampling={"max_tokens": 12}))
            assert (told.text, told.tool_calls, told.finish_reason) == (plain.text, (), "length")

    async def test_tools_without_a_parser_are_refused(self, engine: Any) -> None:
        from workers.engines.vllm.rendering import Rendering

        rendering = Rendering(MODEL.model_copy(update={"chat": ChatSettings()}), None, engine._llm)
        for choice in (None, "auto", "required", {"name": "weather"}):
            with pytest.raises(InvalidRequest, match="tool-call-parser") as caught:
                await rendering.render("job", tools(choice))
            assert caught.value.param == "tool_choice"
        await rendering.render("job", tools("none"))


class TestStructuredOutputs:
    @pytest.mark.parametrize(
        ("wanted", "pattern"),
        [
            ({"json_schema": WEATHER}, r"\{.*\}"),
            ({"json_object": True}, r"\{.*"),
            ({"regex": "[a-c]{5}"}, "[a-c]{5}"),
            ({"choice": ["left", "right"]}, "left|right"),
            ({"grammar": 'root ::= "yes" | "no"'}, "yes|no"),
            (
                {
                    "structural_tag": json.dumps(
                        {"type": "structural_tag", "format": {"type": "regex", "pattern": "ab"}}
                    )
                },
                "ab",
            ),
        ],
    )
    async def test_the_output_is_what_it_must_be(self, engine: Any, wanted: dict[str, Any], pattern: str) -> None:
        choice = await answer(engine, must_be({"max_tokens": 12} if "json_object" in wanted else None, **wanted))
        assert re.fullmatch(pattern, choice.text, re.DOTALL)
        if "json_schema" in wanted:
            jsonschema.validate(json.loads(choice.text), WEATHER)

    async def test_a_completion_too(self, engine: Any) -> None:
        request = asked(prompt="Left or right?", structured_outputs=StructuredOutputs(choice=["left", "right"]))
        choice = await answer(engine, request)
        assert choice.text in ("left", "right")

    async def test_one_without_an_end_is_ended_from_outside(self, engine: Any) -> None:
        request = asked(structured_outputs=StructuredOutputs(regex="(ab)+"), sampling={"logit_bias": {"2": -100}})
        items = engine.generate("endless-1", request)
        async for item in items:
            if isinstance(item, Delta):
                assert engine.stats().requests == 1
                break
        await items.aclose()
        assert engine.stats().requests == 0


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (asked(structured_outputs=StructuredOutputs(json_schema={"type": "nonsense"})), "structured_outputs"),
        (asked(structured_outputs=StructuredOutputs(json_schema={"$ref": "#/lost"})), "structured_outputs"),
        (asked(structured_outputs=StructuredOutputs(regex="([")), "structured_outputs"),
        (asked(structured_outputs=StructuredOutputs(grammar="root ::= lost")), "structured_outputs"),
        (asked(structured_outputs=StructuredOutputs(structural_tag="{}")), "structured_outputs"),
        (asked(structured_outputs=StructuredOutputs(regex="a", choice=["b"])), "structured_outputs"),
        (tools({"name": "nobody"}), "tool_choice"),
        (asked(chat=ChatOptions(tool_choice="required")), "tool_choice"),
        (asked(chat=ChatOptions(tools=[])), "tools"),
        (asked(chat=ChatOptions(continue_final_message=True)), "messages"),
        (asked(logprobs=1000), "logprobs"),
        (asked(sampling={"allowed_token_ids": [2**30]}), "allowed_token_ids"),
        (asked(prompt=[2**30]), "prompt"),
        (asked(prompt=""), "prompt"),
    ],
    ids=str,
)
async def test_what_can_never_run_is_refused_and_the_engine_lives_on(
    engine: Any, request_: GenerateRequest, param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await outputs(engine, request_)
    assert caught.value.param == param
    assert caught.value.message
    assert engine.stats().requests == 0
    assert (await answer(engine, asked(sampling={"max_tokens": 2}))).text


async def test_a_prompt_of_one_token_too_many_is_refused(engine: Any) -> None:
    """While a max_tokens of one too many is answered as far as there is room."""
    prompt, _ = await outputs(engine, asked(sampling={"max_tokens": 1}))
    room = 256 - prompt.prompt_tokens
    made = await deltas(engine, asked(sampling={"max_tokens": room + 1, "ignore_eos": True}))
    assert sum(delta.tokens for delta in made) == room
    await deltas(engine, asked(prompt=[5] * 255, sampling={"max_tokens": 1}))
    with pytest.raises(InvalidRequest, match="256"):
        await outputs(engine, asked(prompt=[5] * 256, sampling={"max_tokens": 1}))


async def test_a_parser_that_breaks_fails_its_job_alone(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.tool_parsers import ToolParserManager

    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("surprise")

    hermes = ToolParserManager.get_tool_parser("hermes")
    monkeypatch.setattr(hermes, "extract_tool_calls_streaming", broken)
    with pytest.raises(EngineError, match="could not be parsed"):
        await outputs(engine, tools("auto", sampling={"max_tokens": 200, "ignore_eos": True}))
    assert engine.stats().requests == 0
    monkeypatch.undo()
    assert (await answer(engine, tools("auto", sampling={"max_tokens": 4}))).text


class TestLogprobs:
    async def test_a_conversation_has_one_entry_a_token(self, engine: Any) -> None:
        made = await deltas(engine, asked(logprobs=3, sampling={"max_tokens": 8, "stop": ["never in it"]}))
        assert all(len(delta.logprobs) == delta.tokens for delta in made)
        (choice,) = whole(made)
        assert choice.logprobs is not None
        assert len(choice.logprobs) == 8
        assert b"".join(bytes(entry["bytes"]) for entry in choice.logprobs).decode() == choice.text
        assert all(len(entry["top"]) == 3 and entry["top"][0]["token"] == entry["token"] for entry in choice.logprobs)

    async def test_a_completion_has_the_drawn_token_on_top_of_the_likeliest(self, engine: Any) -> None:
        made = await deltas(engine, asked(prompt="Once upon", logprobs=0, sampling={"max_tokens": 3}))
        (choice,) = whole(made)
        assert choice.logprobs is not None
        assert [len(entry["top"]) for entry in choice.logprobs] == [1, 1, 1]

    async def test_echo_is_the_prompt_with_its_logprobs(self, engine: Any) -> None:
        prompt, made = await outputs(engine, asked(prompt="Once upon a", echo=True, logprobs=1))
        first = made[0]
        assert (first.text, first.token_ids) == ("Once upon a", ())
        assert [entry["token"] for entry in first.logprobs] == ["Once", " upon", " a"]
        assert first.logprobs[0]["logprob"] is None
        assert all(entry["logprob"] < 0 for entry in first.logprobs[1:])
        assert prompt.prompt_tokens == 3

    async def test_the_prompt_alone(self, engine: Any) -> None:
        (choice,) = whole(await deltas(engine, asked(prompt=[28, 354], echo=True, prompt_only=True)))
        assert choice.finish_reason == "length"
        assert choice.text
        assert choice.text == (await answer(engine, asked(prompt=[28, 354], echo=True))).text[: len(choice.text)]

    async def test_echo_in_a_conversation_is_the_turn_that_is_gone_on_with(self, engine: Any) -> None:
        options = ChatOptions(add_generation_prompt=False, continue_final_message=True)
        said = [*ASKED, Message(role="assistant", content="The weather in")]
        choice = await answer(engine, asked(said, echo=True, chat=options))
        assert choice.text.startswith("The weather in ")
        assert (await answer(engine, asked(echo=True))).text == (await answer(engine, asked())).text

    async def test_prompt_logprobs(self, engine: Any) -> None:
        (choice,) = whole(await deltas(engine, asked(prompt="Once upon a", prompt_logprobs=2)))
        assert choice.prompt_logprobs is not None
        first, second, _ = choice.prompt_logprobs
        assert first is None
        assert second is not None
        assert any(entry["decoded_token"] == " upon" for entry in second.values())


PREFILLED = {
    "a conversation": asked(logprobs=1),
    "tools": tools("auto", chat={"tools": [LOOSE]}, sampling={"max_tokens": 24}),
    "an echo": asked(prompt="Once upon a", echo=True, logprobs=1, sampling={"max_tokens": 12}),
    "stop strings": asked(sampling={"stop": ["capital of"]}),
    "special tokens": asked(sampling={"skip_special_tokens": False, "stop": ["never"]}),
}
MADE_AGAIN = {
    "a required tool": tools("required"),
    "a named tool": tools({"name": "weather"}),
    "a tool of its choice": tools("auto", structured_outputs=StructuredOutputs(regex=CALL)),
    "a schema": must_be(json_schema=WEATHER),
    "a schema, sampled": must_be({"temperature": 1.0}, json_schema=WEATHER).model_copy(update={"logprobs": 1}),
    "a seed": asked(sampling={"temperature": 1.0, "seed": 11}),
    "penalties": asked(sampling={"temperature": 1.0, "presence_penalty": 1.5}),
    "bad words": asked(sampling={"bad_words": ["City of", "Light"]}),
    "choices": asked(sampling={"n": 3, "temperature": 1.0, "max_tokens": 12}),
    "a stop string that is shown": asked(sampling={"stop": ["capital of"], "include_stop_str_in_output": True}),
}


def as_logged(made: list[Delta]) -> list[Delta]:
    """As a log keeps them, flushed after each delta."""
    log = JobLog("job", 1)
    for delta in made:
        log.delta(delta)
        log.seal()
    return [event.delta() for event in log.events]


def comparable(made: list[Delta], choices: int) -> list[Any]:
    """All but the last digits of the logprobs, which depend on what was computed together."""
    return [
        (
            choice.text,
            choice.finish_reason,
            choice.stop_reason,
            choice.tool_calls,
            [(entry["token"], entry["logprob"] and round(entry["logprob"], 3)) for entry in choice.logprobs or ()],
        )
        for choice in whole(made, choices)
    ]


@pytest.mark.parametrize("name", [*PREFILLED, *MADE_AGAIN])
async def test_what_was_cut_goes_on_as_if_uncut(engine: Any, name: str) -> None:
    """Wherever it is cut: the same call ids, no fragment twice, each token counted once."""
    request = {**PREFILLED, **MADE_AGAIN}[name]
    prefilled = name in PREFILLED
    assert engine.goes_on(request) is (GoesOn.AT_ITS_NEXT_TOKEN if prefilled else GoesOn.BY_REPEATING)
    assert (await engine._rendering.render("job_7", request)).prefills == prefilled
    choices = request.sampling.n
    logged = as_logged(await deltas(engine, request))
    cuts = sorted({1, 2, len(logged) // 2, len(logged) - 1})
    rests = await asyncio.gather(*(outputs(engine, request, logged[:cut], attempt=1 + cut) for cut in cuts))
    assert engine.stats().requests == 0
    for cut, (_, rest) in zip(cuts, rests, strict=True):
        so_far = logged[:cut]
        assert not any(isinstance(item, Restarted) for item in rest), f"cut after {cut}"
        assert comparable([*so_far, *rest], choices) == comparable(logged, choices), f"cut after {cut}"
        made = sum(delta.tokens for delta in [*so_far, *rest])
        assert made == sum(delta.tokens for delta in logged)


@pytest.mark.parametrize("name", ["a schema", "choices", "a tool of its choice"])
async def test_what_comes_out_otherwise_is_told_anew(engine: Any, name: str) -> None:
    """A worker whose numbers differ: the reader is told to discard what it has, and gets all of it."""
    request = MADE_AGAIN[name]
    logged = as_logged(await deltas(engine, request))
    so_far = logged[: len(logged) // 2]
    last = so_far[-1]
    last.token_ids = (*last.token_ids[:-1], 7)
    _, rest = await outputs(engine, request, so_far, attempt=2)
    at = next(number for number, item in enumerate(rest) if isinstance(item, Restarted))
    anew = rest[at + 1 :]
    assert not any(isinstance(item, Restarted) for item in anew)

    def told(made: list[Delta]) -> list[Any]:
        return [
            (choice.text, choice.finish_reason, [(call.name, call.arguments) for call in choice.tool_calls])
            for choice in whole(made, request.sampling.n)
        ]

    assert told(anew) == told(logged)


async def test_several_at_once_do_not_mix(engine: Any) -> None:
    requests = [
        tools("required"),
        asked(),
        tools({"name": "weather"}),
        asked(structured_outputs=StructuredOutputs(choice=["left"])),
    ]
    alone = [await answer(engine, request) for request in requests]

    async def one(number: int, request: GenerateRequest) -> Choice:
        async with aclosing(engine.generate(f"job_{number}-1", request)) as items:
            (choice,) = whole([item async for item in items if isinstance(item, Delta)])
        return choice

    together = await asyncio.gather(*(one(number, request) for number, request in enumerate(requests)))
    for first, second in zip(alone, together, strict=True):
        assert (first.text, first.finish_reason) == (second.text, second.finish_reason)
        assert [(call.name, call.arguments) for call in first.tool_calls] == [
            (call.name, call.arguments) for call in second.tool_calls
        ]
