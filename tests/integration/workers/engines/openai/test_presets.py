"""Presets of the `openai` engine: what each kind of server is sent, and what is read from its answers.

The answers are those of the pages and sources that shared/config/models/presets.py names.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import orjson
import pytest

from api.jobs.capability_check import CapabilityCheck
from shared.config.models.loader import Registry
from shared.config.models.openai import OpenAIModel
from shared.config.models.presets import PRESETS
from shared.domain.errors import InvalidRequest
from shared.domain.events import Delta
from shared.domain.job import Usage
from shared.domain.opaque import THINKING, TOOL_CALL, OpaquePart
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
from tests.support.faulty_upstream import Answer, FaultyUpstream, Seen, faulty_upstream
from tests.support.metrics import worker_metrics
from workers.engines.base import UpstreamError
from workers.engines.openai.engine import OpenAIEngine

KEY = "id-0123456789:secret-0123456789"
HELLO = [Message(role="user", content="Hello")]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
ENTRY = {"name": "up", "engine": "openai", "model": "theirs"}


@pytest.fixture
async def upstream() -> AsyncIterator[FaultyUpstream]:
    async with faulty_upstream() as upstream:
        yield upstream


def model(preset: str, url: str, **options: Any) -> OpenAIModel:
    options = {"base_url": url, "api_key_env": "PRESET_KEY", "max_retries": 0, **options}
    return OpenAIModel.model_validate({**ENTRY, "preset": preset, "options": options})


async def run(
    upstream: FaultyUpstream, preset: str, request: GenerateRequest, **options: Any
) -> tuple[Seen, list[Delta], Usage | None]:
    """Run an admitted request; returns what the server received, the deltas and the usage."""
    spec = model(preset, upstream.url, **options)
    CapabilityCheck(Registry({"up": spec})).check("up", request)
    engine = OpenAIEngine(spec, worker_metrics("up"))
    await engine.start()
    deltas: list[Delta] = []
    usage = None
    try:
        async with aclosing(engine.generate("r", request.for_provider(spec.provider))) as items:
            async for item in items:
                if isinstance(item, Usage):
                    usage = item
                elif isinstance(item, Delta):
                    deltas.append(item)
    finally:
        await engine.stop()
    return upstream.seen[-1], deltas, usage


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRESET_KEY", KEY)


def answer(*chunks: dict[str, Any]) -> Answer:
    frames = [b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks]
    return Answer(raw=(b"".join([*frames, b"data: [DONE]\n\n"]),))


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


@pytest.mark.parametrize("preset", PRESETS)
async def test_a_conversation(upstream: FaultyUpstream, preset: str) -> None:
    """Only what the server knows is sent: values without effect, which it may refuse, are left out."""
    sampling = Sampling(max_tokens=5, temperature=0.5, top_k=-1, min_p=0.0, repetition_penalty=1.0, logit_bias={})
    chat = ChatOptions(include_reasoning=True, parallel_tool_calls=True)
    if "reasoning_effort" in PRESETS[preset].capabilities.chat_options:  # others may reason and not know it
        chat.reasoning_effort = "none"
    seen, deltas, _ = await run(upstream, preset, GenerateRequest(messages=HELLO, sampling=sampling, chat=chat))
    assert "".join(delta.text for delta in deltas) == "0 1 2 "
    server = PRESETS[preset]
    known = server.capabilities.sampling
    expected = {
        "model": "theirs",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "Hello"}],
        "temperature": 0.5,
        server.max_tokens_field: 5,
        **{name: value for name, value in (("top_k", -1), ("min_p", 0), ("repetition_penalty", 1)) if name in known},
        **({"logit_bias": {}} if "logit_bias" in known else {}),
        **({"reasoning_effort": "none"} if "reasoning_effort" in server.capabilities.chat_options else {}),
        **server.body,
    }
    assert seen.body == expected
    assert seen.query == {}


@pytest.mark.parametrize("preset", PRESETS)
async def test_a_conversation_that_another_model_began(upstream: FaultyUpstream, preset: str) -> None:
    """With a role, an id and arguments that some servers refuse."""
    long_id = "chatcmpl-tool-" + 32 * "a"
    calls = [
        MessageToolCall(id=long_id, function=FunctionCall(name="f", arguments="")),
        MessageToolCall(id="short", function=FunctionCall(name="f", arguments='{"a": 1}')),
    ]
    messages = [
        Message(role="developer", content="Be brief."),
        *HELLO,
        Message(role="assistant", tool_calls=calls),
        Message(role="tool", tool_call_id=long_id, content="1"),
        Message(role="tool", tool_call_id="short", content="2"),
    ]
    seen, _, _ = await run(upstream, preset, GenerateRequest(messages=messages))
    system, _, assistant, *results = seen.body["messages"]
    first, second = assistant["tool_calls"]
    assert system["role"] == ("developer" if preset in ("openai", "azure", "openrouter") else "system")
    assert (len(first["id"]) <= 40) == (preset in ("openai", "azure"))
    assert [result["tool_call_id"] for result in results] == [first["id"], "short"]
    assert [first["function"]["arguments"], second["function"]["arguments"]] == ["{}", '{"a": 1}']
    assert second["id"] == "short"


@pytest.mark.parametrize("preset", PRESETS)
async def test_the_key_is_sent_in_the_servers_headers(upstream: FaultyUpstream, preset: str) -> None:
    seen, _, _ = await run(upstream, preset, GenerateRequest(messages=HELLO))
    found = {name: value for name, value in seen.headers.items() if "0123456789" in value}
    match preset:
        case "azure":
            assert found == {"api-key": KEY}
        case "modal":
            assert found == {"modal-key": "id-0123456789", "modal-secret": "secret-0123456789"}
        case _:
            assert found == {"authorization": f"Bearer {KEY}"}


async def test_a_key_without_a_secret(upstream: FaultyUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRESET_KEY", "only-an-id")
    with pytest.raises(InvalidRequest, match="api_key_env: the key must be an id and a secret"):
        await run(upstream, "modal", GenerateRequest(messages=HELLO))


async def test_azures_dated_api_versions(upstream: FaultyUpstream) -> None:
    seen, _, _ = await run(upstream, "azure", GenerateRequest(messages=HELLO), api_version="2024-10-21")
    assert (seen.path, seen.query) == ("/v1/chat/completions", {"api-version": "2024-10-21"})


@pytest.mark.parametrize(
    ("preset", "structure", "sent"),
    [
        ("vllm", {"regex": "a+"}, {"structured_outputs": {"regex": "a+"}}),
        ("vllm", {"choice": ["a"]}, {"structured_outputs": {"choice": ["a"]}}),
        ("sglang", {"regex": "a+"}, {"regex": "a+"}),
        ("sglang", {"grammar": "root ::= 'a'"}, {"ebnf": "root ::= 'a'"}),
        ("sglang", {"structural_tag": '{"type":"structural_tag"}'}, {"response_format": {"type": "structural_tag"}}),
        ("sglang", {"json_object": True}, {"response_format": {"type": "json_object"}}),
        ("tgi", {"regex": "a+"}, {"response_format": {"type": "regex", "value": "a+"}}),
        *(
            (
                preset,
                {"json_schema": SCHEMA},
                {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}},
            )
            for preset in PRESETS
            if preset != "triton"
        ),
    ],
)
async def test_structured_outputs_have_the_servers_names(
    upstream: FaultyUpstream, preset: str, structure: dict[str, Any], sent: dict[str, Any]
) -> None:
    request = GenerateRequest(messages=HELLO, structured_outputs=StructuredOutputs(**structure))
    seen, _, _ = await run(upstream, preset, request)
    names = ("structured_outputs", "response_format", "regex", "ebnf")
    assert {name: seen.body[name] for name in names if name in seen.body} == sent


CACHE_KEYS = {"openai": "prompt_cache_key", "azure": "prompt_cache_key", "openrouter": "session_id"}
SALTED = {"vllm", "sglang", "modal", "runpod"}


@pytest.mark.parametrize("preset", PRESETS)
async def test_only_servers_that_know_them_get_cache_keys_and_salts(upstream: FaultyUpstream, preset: str) -> None:
    request = GenerateRequest(messages=HELLO, prompt_cache_key="thread-7", cache_salt="5a17")
    seen, _, _ = await run(upstream, preset, request)
    sent = {name: seen.body[name] for name in ("prompt_cache_key", "session_id", "cache_salt") if name in seen.body}
    key = hmac.digest(b"5a17", b"thread-7", "sha256").hex()
    expected = {CACHE_KEYS[preset]: key} if preset in CACHE_KEYS else {}
    assert sent == expected | ({"cache_salt": "5a17"} if preset in SALTED else {})


async def test_cache_keys_of_projects_are_apart(upstream: FaultyUpstream) -> None:
    """They share the provider's account, and often the names of keys."""
    requests = [GenerateRequest(messages=HELLO, prompt_cache_key="main", cache_salt=salt) for salt in ("1", "1", "2")]
    first, again, other = [(await run(upstream, "openrouter", item))[0].body["session_id"] for item in requests]
    assert first == again != other


async def test_a_cache_key_that_is_too_long_is_sent_as_its_hash(upstream: FaultyUpstream) -> None:
    keys = [(await run(upstream, "openai", request))[0].body["prompt_cache_key"] for request in 2 * [
        GenerateRequest(messages=HELLO, prompt_cache_key=65 * "k")
    ]]  # fmt: skip
    assert keys[0] == keys[1]
    assert len(keys[0]) == 64


async def test_an_entry_that_allows_the_cache_key_sends_it(upstream: FaultyUpstream) -> None:
    """As before the parameter was known: clients send it as a member of the request."""
    request = GenerateRequest(messages=HELLO, prompt_cache_key="thread-7")
    seen, _, _ = await run(upstream, "vllm", request, extra_body=["prompt_cache_key"])
    assert seen.body["prompt_cache_key"] == "thread-7"


async def test_a_refused_cache_key_is_left_out(upstream: FaultyUpstream) -> None:
    upstream.answers = [Answer(status=400, body="Unknown parameter: 'prompt_cache_key'.")]
    _, deltas, _ = await run(upstream, "azure", GenerateRequest(messages=HELLO, prompt_cache_key="thread-7"))
    assert ["prompt_cache_key" in seen.body for seen in upstream.seen] == [True, False]
    assert "".join(delta.text for delta in deltas) == "0 1 2 "


async def test_salts_can_be_turned_off_and_on(upstream: FaultyUpstream) -> None:
    request = GenerateRequest(messages=HELLO, cache_salt="5a17")
    seen, _, _ = await run(upstream, "vllm", request, cache_salt=False)
    assert "cache_salt" not in seen.body
    seen, _, _ = await run(upstream, "tgi", request, cache_salt=True)
    assert seen.body["cache_salt"] == "5a17"


async def test_renamed_and_omitted_parameters(upstream: FaultyUpstream) -> None:
    sampling = Sampling(stop=["x"], include_stop_str_in_output=True)
    seen, _, _ = await run(upstream, "sglang", GenerateRequest(messages=HELLO, sampling=sampling))
    assert (seen.body["no_stop_trim"], "include_stop_str_in_output" in seen.body) == (True, False)
    seen, _, _ = await run(upstream, "tgi", GenerateRequest(messages=HELLO, sampling=Sampling(top_p=1)))
    assert "top_p" not in seen.body, "TGI refuses 1"


@pytest.mark.parametrize(
    ("preset", "sent"),
    [
        ("vllm", {"continue_final_message": True, "add_generation_prompt": False}),
        ("sglang", {"continue_final_message": True}),
    ],
)
async def test_the_last_message_is_continued(upstream: FaultyUpstream, preset: str, sent: dict[str, Any]) -> None:
    request = GenerateRequest(
        messages=[*HELLO, Message(role="assistant", content="Hi")],
        chat=ChatOptions(continue_final_message=True, add_generation_prompt=False),
    )
    seen, _, _ = await run(upstream, preset, request)
    names = ("continue_final_message", "add_generation_prompt")
    assert {name: seen.body[name] for name in names if name in seen.body} == sent
    with pytest.raises(InvalidRequest, match="continue_final_message: the model `up` does not support"):
        await run(upstream, "openai", request)


@pytest.mark.parametrize(
    ("preset", "field"),
    [("vllm", "reasoning"), ("sglang", "reasoning_content"), ("openrouter", "reasoning"), ("gemini", None)],
)
async def test_reasoning_of_earlier_turns(upstream: FaultyUpstream, preset: str, field: str | None) -> None:
    """It is sent only to servers that read it."""
    past = [*HELLO, Message(role="assistant", content="Hi", reasoning="hmm"), *HELLO]
    seen, _, _ = await run(upstream, preset, GenerateRequest(messages=past))
    assert seen.body["messages"][1] == {"role": "assistant", "content": "Hi", **({field: "hmm"} if field else {})}


@pytest.mark.parametrize("preset", ["openai", "vllm"])
async def test_reasoning_that_the_client_does_not_want(upstream: FaultyUpstream, preset: str) -> None:
    upstream.answers = [answer(chunk({"reasoning": "hmm"}), chunk({"content": "Hi"}, "stop"))]
    request = GenerateRequest(messages=HELLO, chat=ChatOptions(include_reasoning=False))
    seen, deltas, _ = await run(upstream, preset, request)
    assert ("include_reasoning" in seen.body) == (preset == "vllm")
    assert [(delta.reasoning, delta.text) for delta in deltas if delta.visible] == [("", "Hi")]


@pytest.mark.parametrize(
    ("reported", "usage"),
    [
        ({"completion_tokens": 8, "total_tokens": 70}, Usage(12, 0, 58, 50)),
        ({"completion_tokens": 0, "total_tokens": 62}, Usage(12, 0, 50, 50)),
        ({"completion_tokens": 8, "total_tokens": 20}, Usage(12, 0, 8)),
        (
            {
                "completion_tokens": 8,
                "total_tokens": 70,
                "completion_tokens_details": {"reasoning_tokens": 50},
                "prompt_tokens_details": {"cached_tokens": 5},
            },
            Usage(12, 5, 58, 50),
        ),
        ({"completion_tokens": 58, "total_tokens": 70, "completion_tokens_details": {"reasoning_tokens": 50}},
         Usage(12, 0, 58, 50)),
    ],
)  # fmt: skip
async def test_geminis_thoughts_are_part_of_the_completion(
    upstream: FaultyUpstream, reported: dict[str, Any], usage: Usage
) -> None:
    upstream.answers = [answer(chunk({"content": "Hi"}, "stop", usage={"prompt_tokens": 12, **reported}))]
    assert (await run(upstream, "gemini", GenerateRequest(messages=HELLO)))[2] == usage


def tool_request(*messages: Message) -> GenerateRequest:
    return GenerateRequest(
        messages=[*HELLO, *messages], chat=ChatOptions(tools=[Tool(function=Function(name="f", parameters={}))])
    )


def fragment(index: int, name: str, signature: str | None) -> dict[str, Any]:
    call = {"index": index, "id": f"c{index}", "type": "function", "function": {"name": name, "arguments": "{}"}}
    return {**call, "extra_content": {"google": {"thought_signature": signature}}} if signature else call


async def test_geminis_thought_signatures_come_back_with_their_calls(upstream: FaultyUpstream) -> None:
    upstream.answers = [
        answer(
            chunk({"content": "Hm.", "extra_content": {"google": {"thought_signature": "of the text"}}}),
            chunk({"tool_calls": [fragment(0, "f", "sig-1"), fragment(1, "f", None)]}, "stop"),
        )
    ]
    _, deltas, _ = await run(upstream, "gemini", tool_request())
    parts = [part for delta in deltas for part in delta.opaque]
    calls = [call for delta in deltas for call in delta.tool_calls]
    assert deltas[-1].finish_reason == "tool_calls"
    assert [(part.origin, part.kind, part.call_id) for part in parts] == [
        ("gemini", "extra_content", None),
        ("gemini", TOOL_CALL, calls[0].id),
    ]

    past = Message(
        role="assistant",
        content="Hm.",
        tool_calls=[
            MessageToolCall(id=call.id, function=FunctionCall(name="f", arguments="{}")) for call in calls if call.id
        ],
        opaque=[*parts, OpaquePart("anthropic", THINKING, {"signature": "foreign"})],
    )
    seen, _, _ = await run(upstream, "gemini", tool_request(past, *HELLO))
    sent = seen.body["messages"][1]
    assert sent["extra_content"] == {"google": {"thought_signature": "of the text"}}
    assert [call.get("extra_content") for call in sent["tool_calls"]] == [
        {"google": {"thought_signature": "sig-1"}},
        None,
    ]
    assert "foreign" not in str(seen.body)
    seen, _, _ = await run(upstream, "openai", tool_request(past, *HELLO))
    assert "sig-1" not in str(seen.body), "another provider's"


@pytest.mark.parametrize("data", [None, [], "x", {"extra_content": "x"}, {"extra_content": []}, {"other": {"a": 1}}])
async def test_forged_parts_are_left_out(upstream: FaultyUpstream, data: Any) -> None:
    past = Message(role="assistant", content="Hi", opaque=[OpaquePart("gemini", "extra_content", data)])
    seen, _, _ = await run(upstream, "gemini", GenerateRequest(messages=[past, *HELLO]))
    assert seen.body["messages"][0] == {"role": "assistant", "content": "Hi"}


async def test_openrouters_reasoning_details_are_joined_and_sent_back(upstream: FaultyUpstream) -> None:
    def details(*items: dict[str, Any]) -> dict[str, Any]:
        return chunk({"reasoning_details": list(items)})

    upstream.answers = [
        answer(
            details({"type": "reasoning.text", "text": "Let ", "format": "anthropic-claude-v1", "index": 0}),
            details({"type": "reasoning.text", "text": "me see", "signature": None, "index": 0}),
            details({"type": "reasoning.text", "signature": "s1", "index": 0}),
            details({"type": "reasoning.encrypted", "data": "zzz", "index": 1}),
            chunk({"content": "Hi"}, "stop"),
        )
    ]
    _, deltas, _ = await run(upstream, "openrouter", GenerateRequest(messages=HELLO))
    parts = [part for delta in deltas for part in delta.opaque]
    joined = [
        {
            "type": "reasoning.text",
            "text": "Let me see",
            "format": "anthropic-claude-v1",
            "index": 0,
            "signature": "s1",
        },
        {"type": "reasoning.encrypted", "data": "zzz", "index": 1},
    ]
    assert [(part.origin, part.kind, part.data) for part in parts] == [
        ("openrouter", THINKING, {"reasoning_details": joined})
    ]
    past = Message(role="assistant", content="Hi", opaque=parts)
    seen, _, _ = await run(upstream, "openrouter", GenerateRequest(messages=[*HELLO, past, *HELLO]))
    assert seen.body["messages"][1] == {"role": "assistant", "content": "Hi", "reasoning_details": joined}


@pytest.mark.parametrize(
    ("kind", "error"),
    [("validation", InvalidRequest), ("overloaded", UpstreamError), ("generation", UpstreamError)],
)
async def test_tgis_errors_in_the_stream(upstream: FaultyUpstream, kind: str, error: type[Exception]) -> None:
    frame = b"data: " + orjson.dumps({"error": "Request failed during generation: x", "error_type": kind}) + b"\n\n"
    upstream.answers = [Answer(raw=(frame,))]
    with pytest.raises(error, match="Request failed during generation"):
        await run(upstream, "tgi", GenerateRequest(messages=HELLO))


ROOM = (
    "Input validation error: `inputs` tokens + `max_new_tokens` must be <= {}. Given: {} `inputs` tokens and 500"
    " `max_new_tokens`"
)


def no_room(total: int, prompt: int) -> Answer:
    body = orjson.dumps({"error": ROOM.format(total, prompt), "error_type": "validation"}).decode()
    return Answer(status=422, body=body)


async def test_tgis_limit_is_lowered_to_what_the_prompt_leaves(upstream: FaultyUpstream) -> None:
    """A max_tokens that exceeds the room ends the answer there, as in every other model."""
    request = GenerateRequest(messages=HELLO, sampling=Sampling(max_tokens=500))
    upstream.answers = [no_room(4096, 4000)]
    _, deltas, _ = await run(upstream, "tgi", request)
    assert [item.body["max_tokens"] for item in upstream.seen] == [500, 96]
    assert "".join(delta.text for delta in deltas) == "0 1 2 "
    for answers in ([no_room(4096, 4096)], [no_room(4096, 4000), no_room(4096, 4090)]):
        upstream.answers = answers
        with pytest.raises(InvalidRequest, match="must be <= 4096"):
            await run(upstream, "tgi", request)
        assert not upstream.answers, "tried once"


async def test_parameters_of_the_provider_are_added_to_the_presets_own(upstream: FaultyUpstream) -> None:
    request = GenerateRequest(messages=HELLO, extra_body={"provider": {"order": ["x"]}, "models": ["a"]})
    seen, _, _ = await run(upstream, "openrouter", request, extra_body=["provider", "models"])
    assert seen.body["provider"] == {"require_parameters": True, "order": ["x"]}
    assert seen.body["models"] == ["a"]
