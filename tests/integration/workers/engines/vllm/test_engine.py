"""The vLLM engine: tools, structured outputs, logprobs, refused requests, and resuming."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from shared.config.models.vllm import ChatSettings
from shared.domain.errors import InvalidRequest
from shared.domain.events import Delta
from shared.domain.job import Choice
from shared.domain.request import (
    ChatOptions,
    Function,
    FunctionCall,
    GenerateRequest,
    Message,
    MessageToolCall,
    Sampling,
    StructuredOutputs,
    Tool,
)
from shared.prompts.token_counter import TokenCounter
from tests.support.metrics import worker_metrics
from tests.support.real_engine import CONTEXT, SMOLLM2
from tests.support.transcripts import choices_of, entries_of, logged_delta
from workers.engines.base import EngineError, Prior, PromptInfo, Restarted
from workers.engines.resume import Resume
from workers.execution.log_writer import LogBuffer

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
NOT_STRICT = Tool(function=Function(name="weather", parameters=WEATHER))
QUESTION = [Message(role="user", content="What is the weather in Paris?")]
CALL_PATTERN = (
    r'<tool_call>\n\{"name": "weather", "arguments": \{"city": "[A-Z][a-z]{2,6}", "unit": "kelvin"\}\}\n</tool_call>'
)


HERMES = """\
{%- if tools %}<|im_start|>system
<tools>{% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools>{{ tools[0].function | tojson(indent=2) }}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }} {{ message.name }}
{{ message.content }}
{%- if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}
{%- for call in message.tool_calls %}<tool_call>
{"name": "{{ call.function.name }}", "id": "{{ call.id }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def engine(real_engine: Any) -> Any:
    return real_engine


def make_request(messages: list[Message] | None = None, **fields: Any) -> GenerateRequest:
    sampling = {"temperature": 0, "max_tokens": 24, **fields.pop("sampling", {})}
    if "prompt" not in fields:
        fields["messages"] = QUESTION if messages is None else messages
    return GenerateRequest(sampling=Sampling(**sampling), **fields)


def tools(choice: Any, **fields: Any) -> GenerateRequest:
    options = {"tools": TOOLS, "tool_choice": choice, **fields.pop("chat", {})}
    sampling = {"max_tokens": 128, **fields.pop("sampling", {})}
    return make_request(chat=ChatOptions(**options), sampling=sampling, **fields)


def structured(sampling: dict[str, Any] | None = None, **output: Any) -> GenerateRequest:
    sampling = {"max_tokens": 128, **(sampling or {})}
    return make_request(structured_outputs=StructuredOutputs(**output), sampling=sampling)


async def outputs(
    engine: Any,
    request: GenerateRequest,
    prior: list[Delta] | None = None,
    attempt: int = 1,
    *,
    comparable: bool = True,
) -> tuple[PromptInfo, list[Delta | Restarted]]:
    """The prompt's info, and the deltas with `Restarted` among them."""
    async with aclosing(engine.generate(f"job_7-{attempt}", request, Prior(prior or [], comparable))) as items:
        received = [item async for item in items]
    at = 1 if not comparable and isinstance(received[0], Restarted) else 0
    prompt = received.pop(at)
    assert isinstance(prompt, PromptInfo)
    return prompt, received


async def generate(engine: Any, request: GenerateRequest) -> list[Delta]:
    _, received = await outputs(engine, request)
    return [item for item in received if isinstance(item, Delta)]


async def answer(engine: Any, request: GenerateRequest) -> Choice:
    (choice,) = choices_of(await generate(engine, request))
    return choice


@pytest.mark.parametrize("field", ["tool_call_parser", "reasoning_parser"])
async def test_unknown_parser_is_refused_before_the_model_is_loaded(field: str) -> None:
    from workers.engines.vllm.engine import VllmEngine

    chat = ChatSettings.model_validate({field: "unknown"})
    with pytest.raises(InvalidRequest, match=rf"smollm2\.chat\.{field}: vLLM has no 'unknown'; it has .*deepseek"):
        await VllmEngine(MODEL.model_copy(update={"chat": chat}), worker_metrics(MODEL.name)).start()


async def test_parser_that_the_tokenizer_does_not_support(engine: Any) -> None:
    from workers.engines.vllm.request import Renderer

    model = MODEL.model_copy(update={"chat": ChatSettings(reasoning_parser="deepseek_r1")})
    with pytest.raises(InvalidRequest, match=r"models\.yaml: smollm2\.chat: .*think"):
        Renderer(model, None, engine._llm)


class TestTools:
    async def test_required_tool(self, engine: Any) -> None:
        choice = await answer(engine, tools("required", chat={"parallel_tool_calls": False}))
        assert (choice.finish_reason, choice.text) == ("tool_calls", "")
        (call,) = choice.tool_calls
        assert call.id
        schemas = {tool.function.name: tool.function.parameters for tool in TOOLS}
        jsonschema.validate(json.loads(call.arguments), schemas[call.name])

    async def test_named_tool_keeps_the_finish_reason_stop(self, engine: Any) -> None:
        """As in the servers of vLLM and OpenAI."""
        choice = await answer(engine, tools({"name": "weather"}))
        assert choice.finish_reason == "stop"
        (call,) = choice.tool_calls
        assert call.name == "weather"
        jsonschema.validate(json.loads(call.arguments), WEATHER)

    async def test_calls_chosen_by_the_model_are_parsed(self, engine: Any) -> None:
        """A grammar enforces the form of a call, because this small model would not write one."""
        deltas = await generate(engine, tools("auto", structured_outputs=StructuredOutputs(regex=CALL_PATTERN)))
        (choice,) = choices_of(deltas)
        assert choice.finish_reason == "tool_calls"
        fragments = [fragment for delta in deltas for fragment in delta.tool_calls]
        assert len(fragments) > 2 * len(choice.tool_calls)
        assert [fragment.id for fragment in fragments if fragment.id] == [call.id for call in choice.tool_calls]
        for call in choice.tool_calls:
            assert call.name in {tool.function.name for tool in TOOLS}
            assert isinstance(json.loads(call.arguments), dict)

    async def test_text_if_no_tool_is_called(self, engine: Any) -> None:
        plain = await answer(engine, make_request(sampling={"max_tokens": 12}))
        for choice in ("auto", "none"):
            with_tools = await answer(engine, tools(choice, sampling={"max_tokens": 12}))
            assert (with_tools.text, with_tools.tool_calls, with_tools.finish_reason) == (plain.text, (), "length")

    async def test_the_api_counts_tools_and_calls_as_they_are_rendered_here(self, engine: Any, tmp_path: Path) -> None:
        """With a template of the Hermes kind, which prints tools and calls as JSON."""
        from workers.engines.vllm.request import Renderer

        call = MessageToolCall(id="c", function=FunctionCall(name="weather", arguments='{"city": "Paris"}'))
        broken = MessageToolCall(id="d", function=FunctionCall(name="tide", arguments='{"a'))
        messages = [
            Message(role="system", content="Be brief."),
            *QUESTION,
            Message(role="assistant", reasoning="It asks for the weather.", tool_calls=[call, broken]),
            Message(role="tool", content="12 degrees", tool_call_id="c"),
            Message(role="tool", content="", tool_call_id="d"),
            Message(role="user", content="And now?", name="miller"),
        ]
        folder = MODEL.folder
        assert folder is not None
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / name).symlink_to(folder / name)
        (tmp_path / "chat_template.jinja").write_text(HERMES)
        counter, renderer = TokenCounter(tmp_path), Renderer(MODEL, HERMES, engine._llm)
        short = [
            Tool(function=Function(name="f", parameters={"type": "object"}, strict=True)),
            Tool(function=Function(name="g")),
        ]
        for options in (
            None,
            ChatOptions(tools=short, tool_choice="auto"),
            ChatOptions(tools=short, tool_choice="none"),
        ):
            request = make_request(messages, chat=options, sampling={"max_tokens": 1})
            rendered = await renderer.render("job", request)
            assert counter.count(request) == len(rendered.token_ids)
        assert len(rendered.token_ids) > 150

    async def test_tools_without_a_parser_are_refused(self, engine: Any) -> None:
        from workers.engines.vllm.request import Renderer

        renderer = Renderer(MODEL.model_copy(update={"chat": ChatSettings()}), None, engine._llm)
        for choice in (None, "auto", "required", {"name": "weather"}):
            with pytest.raises(InvalidRequest, match="tool-call-parser") as caught:
                await renderer.render("job", tools(choice))
            assert caught.value.param == "tool_choice"
        await renderer.render("job", tools("none"))


LENGTHS: dict[str, Any] = {
    "type": "object",
    "properties": {
        f"field_{length}": {"type": "string", "maxLength": length}
        for length in (2, 10, 50, 100, 255, 500, 1000, 2000, 65535)
    },
    "required": ["field_2"],
    "additionalProperties": False,
}


class TestStructuredOutputs:
    @pytest.mark.parametrize(
        ("output", "pattern"),
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
    async def test_output_satisfies_the_constraint(self, engine: Any, output: dict[str, Any], pattern: str) -> None:
        choice = await answer(engine, structured({"max_tokens": 12} if "json_object" in output else None, **output))
        assert re.fullmatch(pattern, choice.text, re.DOTALL)
        if "json_schema" in output:
            jsonschema.validate(json.loads(choice.text), WEATHER)

    @pytest.mark.parametrize(
        "output",
        [
            {"json_schema": LENGTHS},
            {"json_schema": {"type": "string", "pattern": "^[a-z]{1,200}$"}},
            {"regex": "[^x]{1,200}"},
        ],
        ids=["lengths", "pattern", "regex"],
    )
    async def test_strings_with_lengths_and_patterns(self, engine: Any, output: dict[str, Any]) -> None:
        choice = await answer(engine, structured({"max_tokens": 40}, **output))
        if "regex" in output:
            assert re.fullmatch(output["regex"], choice.text, re.DOTALL)
        elif choice.finish_reason == "stop":
            jsonschema.validate(json.loads(choice.text), output["json_schema"])

    async def test_strings_that_no_backend_compiles_fast_are_refused(self, engine: Any) -> None:
        schema = {
            **LENGTHS,
            "properties": {**LENGTHS["properties"], "at": {"type": "string", "format": "json-pointer"}},
        }
        with pytest.raises(InvalidRequest, match="lengths or patterns") as raised:
            await answer(engine, structured(json_schema=schema))
        assert raised.value.param == "structured_outputs"

    async def test_completion(self, engine: Any) -> None:
        request = make_request(prompt="Left or right?", structured_outputs=StructuredOutputs(choice=["left", "right"]))
        choice = await answer(engine, request)
        assert choice.text in ("left", "right")

    async def test_endless_output_can_be_aborted(self, engine: Any) -> None:
        request = make_request(
            structured_outputs=StructuredOutputs(regex="(ab)+"), sampling={"logit_bias": {"2": -100}}
        )
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
        (make_request(structured_outputs=StructuredOutputs(json_schema={"type": "nonsense"})), "structured_outputs"),
        (make_request(structured_outputs=StructuredOutputs(json_schema={"$ref": "#/lost"})), "structured_outputs"),
        (make_request(structured_outputs=StructuredOutputs(regex="([")), "structured_outputs"),
        (make_request(structured_outputs=StructuredOutputs(grammar="root ::= lost")), "structured_outputs"),
        (make_request(structured_outputs=StructuredOutputs(structural_tag="{}")), "structured_outputs"),
        (make_request(structured_outputs=StructuredOutputs(regex="a", choice=["b"])), "structured_outputs"),
        (tools({"name": "unknown"}), "tool_choice"),
        (make_request(chat=ChatOptions(tool_choice="required")), "tool_choice"),
        (make_request(chat=ChatOptions(tools=[])), "tools"),
        (make_request(chat=ChatOptions(continue_final_message=True)), "messages"),
        (make_request(logprobs=1000), "logprobs"),
        (make_request(sampling={"allowed_token_ids": [2**30]}), "allowed_token_ids"),
        (make_request(prompt=[2**30]), "prompt"),
        (make_request(prompt=""), "prompt"),
    ],
    ids=str,
)
async def test_invalid_requests_are_refused_and_the_engine_survives(
    engine: Any, request_: GenerateRequest, param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await outputs(engine, request_)
    assert caught.value.param == param
    assert caught.value.message
    assert engine.stats().requests == 0
    assert (await answer(engine, make_request(sampling={"max_tokens": 2}))).text


async def test_context_limit(engine: Any) -> None:
    """A max_tokens that is too large is reduced; a prompt that is too long is refused."""
    long = [Message(role="user", content=" a" * 180)]  # so that the rest of the context is generated soon
    prompt, _ = await outputs(engine, make_request(long, sampling={"max_tokens": 1}))
    available = 256 - prompt.prompt_tokens
    deltas = await generate(engine, make_request(long, sampling={"max_tokens": available + 1, "ignore_eos": True}))
    assert sum(delta.tokens for delta in deltas) == available
    await generate(engine, make_request(prompt=[5] * 255, sampling={"max_tokens": 1}))
    with pytest.raises(InvalidRequest, match="256"):
        await outputs(engine, make_request(prompt=[5] * 256, sampling={"max_tokens": 1}))


async def test_failing_parser_fails_only_its_request(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.tool_parsers import ToolParserManager

    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("unexpected")

    hermes = ToolParserManager.get_tool_parser("hermes")
    monkeypatch.setattr(hermes, "extract_tool_calls_streaming", broken)
    with pytest.raises(EngineError, match="could not be parsed"):
        await outputs(engine, tools("auto", sampling={"max_tokens": 200, "ignore_eos": True}))
    assert engine.stats().requests == 0
    monkeypatch.undo()
    assert (await answer(engine, tools("auto", sampling={"max_tokens": 4}))).text


class TestLogprobs:
    async def test_chat_has_one_entry_per_token(self, engine: Any) -> None:
        deltas = await generate(
            engine, make_request(logprobs=3, sampling={"max_tokens": 8, "stop": ["does not occur"]})
        )
        assert all(len(delta.logprobs) == delta.tokens for delta in deltas)
        (choice,) = choices_of(deltas)
        assert choice.logprobs is not None
        assert len(choice.logprobs) == 8
        assert b"".join(bytes(entry["bytes"]) for entry in choice.logprobs).decode() == choice.text
        assert all(len(entry["top"]) == 3 and entry["top"][0]["token"] == entry["token"] for entry in choice.logprobs)

    async def test_nothing_is_compiled_for_an_eager_engine(self, engine: Any, compiled: Path) -> None:
        await generate(engine, make_request(logprobs=3, sampling={"max_tokens": 2}))
        assert not files_in(compiled)

    async def test_completion_adds_the_sampled_token_to_the_alternatives(self, engine: Any) -> None:
        deltas = await generate(engine, make_request(prompt="Once upon", logprobs=0, sampling={"max_tokens": 3}))
        (choice,) = choices_of(deltas)
        assert choice.logprobs is not None
        assert [len(entry["top"]) for entry in choice.logprobs] == [1, 1, 1]

    async def test_echo_has_the_prompts_logprobs(self, engine: Any) -> None:
        prompt, deltas = await outputs(engine, make_request(prompt="Once upon a", echo=True, logprobs=1))
        first = deltas[0]
        assert isinstance(first, Delta)
        assert (first.text, first.token_ids) == ("Once upon a", ())
        assert [entry["token"] for entry in entries_of(first)] == ["Once", " upon", " a"]
        assert entries_of(first)[0]["logprob"] is None
        assert all(entry["logprob"] < 0 for entry in entries_of(first)[1:])
        assert prompt.prompt_tokens == 3

    async def test_prompt_only(self, engine: Any) -> None:
        (choice,) = choices_of(await generate(engine, make_request(prompt=[28, 354], echo=True, prompt_only=True)))
        assert choice.finish_reason == "length"
        assert choice.text
        assert choice.text == (await answer(engine, make_request(prompt=[28, 354], echo=True))).text[: len(choice.text)]

    async def test_echo_in_a_chat_is_the_continued_message(self, engine: Any) -> None:
        options = ChatOptions(add_generation_prompt=False, continue_final_message=True)
        messages = [*QUESTION, Message(role="assistant", content="The weather in")]
        choice = await answer(engine, make_request(messages, echo=True, chat=options))
        assert choice.text.startswith("The weather in ")
        assert (await answer(engine, make_request(echo=True))).text == (await answer(engine, make_request())).text

    async def test_prompt_logprobs(self, engine: Any) -> None:
        (choice,) = choices_of(await generate(engine, make_request(prompt="Once upon a", prompt_logprobs=2)))
        assert choice.prompt_logprobs is not None
        first, second, _ = choice.prompt_logprobs
        assert first is None
        assert second is not None
        assert any(entry["decoded_token"] == " upon" for entry in second.values())


EXACT = {
    "a chat": make_request(logprobs=1),
    "tools": tools("auto", chat={"tools": [NOT_STRICT]}, sampling={"max_tokens": 24}),
    "echo": make_request(prompt="Once upon a", echo=True, logprobs=1, sampling={"max_tokens": 12}),
    "stop strings": make_request(sampling={"stop": ["capital of"]}),
    "special tokens": make_request(sampling={"skip_special_tokens": False, "stop": ["does not occur"]}),
}
REGENERATED = {
    "a required tool": tools("required"),
    "a named tool": tools({"name": "weather"}),
    "a tool chosen by the model": tools("auto", structured_outputs=StructuredOutputs(regex=CALL_PATTERN)),
    "a schema": structured(json_schema=WEATHER),
    "a schema, sampled": structured({"temperature": 1.0}, json_schema=WEATHER).model_copy(update={"logprobs": 1}),
    "a seed": make_request(sampling={"temperature": 1.0, "seed": 11}),
    "penalties": make_request(sampling={"temperature": 1.0, "presence_penalty": 1.5}),
    "bad words": make_request(sampling={"bad_words": ["City of", "Light"]}),
    "choices": make_request(sampling={"n": 3, "temperature": 1.0, "max_tokens": 12}),
    "an included stop string": make_request(sampling={"stop": ["capital of"], "include_stop_str_in_output": True}),
}


def as_logged(deltas: list[Delta]) -> list[Delta]:
    """The deltas of a log that is flushed after each delta."""
    log = LogBuffer("job", 1, worker_metrics())
    for delta in deltas:
        log.delta(delta)
        log.seal()
    return [logged_delta(event) for event in log.events]


def rounded(deltas: Sequence[Delta | Restarted], choices: int) -> list[Any]:
    """The choices with rounded logprobs, whose last digits depend on the batch."""
    return [
        (
            choice.text,
            choice.finish_reason,
            choice.stop_reason,
            choice.tool_calls,
            [(entry["token"], entry["logprob"] and round(entry["logprob"], 3)) for entry in choice.logprobs or ()],
        )
        for choice in choices_of([item for item in deltas if isinstance(item, Delta)], choices)
    ]


@pytest.mark.parametrize("name", [*EXACT, *REGENERATED])
async def test_resume(engine: Any, name: str) -> None:
    """At any delta: the same call ids, no fragment twice, each token counted once."""
    request = {**EXACT, **REGENERATED}[name]
    exact = name in EXACT
    assert engine.resume_mode(request) is (Resume.EXACT if exact else Resume.REGENERATE)
    assert (await engine._renderer.render("job_7", request)).resumable == exact
    choices = request.sampling.n
    logged = as_logged(await generate(engine, request))
    cuts = sorted({1, 2, len(logged) // 2, len(logged) - 1})
    rests = await asyncio.gather(*(outputs(engine, request, logged[:cut], attempt=1 + cut) for cut in cuts))
    assert engine.stats().requests == 0
    for cut, (_, rest) in zip(cuts, rests, strict=True):
        prior = logged[:cut]
        assert not any(isinstance(item, Restarted) for item in rest), f"interrupted after {cut} deltas"
        assert rounded([*prior, *rest], choices) == rounded(logged, choices), f"interrupted after {cut} deltas"
        tokens = sum(delta.tokens for delta in [*prior, *rest] if isinstance(delta, Delta))
        assert tokens == sum(delta.tokens for delta in logged)


@pytest.mark.parametrize("name", ["a schema", "choices", "a tool chosen by the model"])
async def test_regenerated_answer_that_differs_restarts(engine: Any, name: str) -> None:
    """The engine reports the restart and yields the whole answer again."""
    request = REGENERATED[name]
    logged = as_logged(await generate(engine, request))
    prior = logged[: len(logged) // 2]
    last = prior[-1]
    last.token_ids = (*last.token_ids[:-1], 7)
    _, rest = await outputs(engine, request, prior, attempt=2)
    at = next(number for number, item in enumerate(rest) if isinstance(item, Restarted))
    restarted = rest[at + 1 :]
    assert not any(isinstance(item, Restarted) for item in restarted)

    def without_ids(deltas: Sequence[Delta | Restarted]) -> list[Any]:
        return [
            (choice.text, choice.finish_reason, [(call.name, call.arguments) for call in choice.tool_calls])
            for choice in choices_of([item for item in deltas if isinstance(item, Delta)], request.sampling.n)
        ]

    assert without_ids(restarted) == without_ids(logged)


@pytest.mark.parametrize("name", ["a chat", "a schema", "choices"])
async def test_nothing_is_compared_across_fingerprints(engine: Any, name: str) -> None:
    """Tokens from an attempt with another fingerprint are resumed exactly or discarded, even if they would match."""
    request = {**EXACT, **REGENERATED}[name]
    logged = as_logged(await generate(engine, request))
    prior = logged[: len(logged) // 2]
    _, rest = await outputs(engine, request, prior, attempt=2, comparable=False)
    restarts = name in REGENERATED
    assert isinstance(rest[0], Restarted) is restarts
    complete = rest[1:] if restarts else [*prior, *rest]
    assert rounded(complete, request.sampling.n) == rounded(logged, request.sampling.n)


async def test_the_fingerprint_has_the_dtype(engine: Any) -> None:
    assert engine.fingerprint == MODEL.fingerprint, "the model's options name the dtype"
    assert MODEL.with_dtype("bfloat16").fingerprint != engine.fingerprint


async def test_what_it_runs_with_is_reported(engine: Any) -> None:
    info = engine.stats().info
    assert (info.dtype, info.quantization, info.attention_backend, info.start) == ("float32", None, "CPU_ATTN", "fast")
    assert (info.context, info.slots, info.fingerprint) == (CONTEXT, 8, engine.fingerprint)
    assert info.kv_cache.blocks == engine._llm.vllm_config.cache_config.num_gpu_blocks
    assert info.kv_cache.tokens == engine.prefix_room > CONTEXT


async def test_concurrent_requests_do_not_mix(engine: Any) -> None:
    requests = [
        tools("required"),
        make_request(),
        tools({"name": "weather"}),
        make_request(structured_outputs=StructuredOutputs(choice=["left"])),
    ]
    alone = [await answer(engine, request) for request in requests]

    async def one(number: int, request: GenerateRequest) -> Choice:
        async with aclosing(engine.generate(f"job_{number}-1", request)) as items:
            (choice,) = choices_of([item async for item in items if isinstance(item, Delta)])
        return choice

    together = await asyncio.gather(*(one(number, request) for number, request in enumerate(requests)))
    for first, second in zip(alone, together, strict=True):
        assert (first.text, first.finish_reason) == (second.text, second.finish_reason)
        assert [(call.name, call.arguments) for call in first.tool_calls] == [
            (call.name, call.arguments) for call in second.tool_calls
        ]


async def test_prefixes_are_reused_within_a_project_only(engine: Any) -> None:
    """A client that measures the time to the first token learns nothing about the prompts of other projects.

    The prompts are longer than a block of the cache (128 tokens on a CPU). An attempt that resumes is as before.
    """
    prefix = list(range(1000, 1140))

    async def cached(salt: str | None, last: int, prior: list[Delta] | None = None) -> int:
        request = make_request(prompt=[*prefix, last], cache_salt=salt, sampling={"max_tokens": 4})
        prompt, _ = await outputs(engine, request, prior, attempt=2 if prior else 1)
        return prompt.cached_tokens

    assert await cached("a", 1) == 0
    assert await cached("a", 2) == 128
    assert await cached("b", 3) == 0
    assert await cached(None, 4) == 0
    so_far = [Delta(0, "x", (5,))]
    assert await cached("a", 6, so_far) == 128
    assert await cached("c", 6, so_far) == 0
    assert await cached("c", 7) == 128, "the resumed attempt has filled the cache of its project"
