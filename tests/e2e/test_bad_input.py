"""Every invalid request gets an error in OpenAI's format that names the field, and has no other effect.

A case is a path, the invalid part, and the `param` and words that the error must contain.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import hypothesis
import hypothesis.strategies as some
import pytest

from tests.e2e.test_jobs import submit, wait_for_end
from tests.e2e.test_projects import key_id
from tests.support.examples import example_count
from tests.support.sse import follow, text_of
from tests.support.stack import KEY, Stack
from tests.support.waiting import eventually

JOBS, CHAT, COMPLETIONS = "/v1/jobs", "/v1/chat/completions", "/v1/completions"
POSTS = (JOBS, CHAT, COMPLETIONS)
MESSAGES = [{"role": "user", "content": "the mill"}]
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
CONTEXT = 4096
BODY_LIMIT = 100_000
SURROGATE = "\ud800"
DEEP = 10_000


@pytest.fixture(scope="module", autouse=True)
def _no_unexpected_error(sim_stack: Stack) -> Iterator[None]:
    """No test in this module may cause a stack trace in the API's log."""
    log = sim_stack.folder / "api.log"
    before = len(log.read_bytes())
    yield
    assert b"Traceback" not in log.read_bytes()[before:]


def assert_error(
    response: httpx.Response, *words: str, status: int = 400, param: str | None = None, code: str | None = None
) -> None:
    """Assert that the response is an error in OpenAI's format with these fields and words."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param, error
    assert error["code"] == code, error
    for word in words:
        assert word in error["message"], error


def body_for(path: str, **changes: Any) -> dict[str, Any]:
    """A valid request with the changes applied."""
    given = {"messages": MESSAGES} if path == CHAT else {"prompt": "the mill"}
    return {"model": "sim", "max_tokens": 4, **given, **changes}


async def send(client: httpx.AsyncClient, path: str, body: Any) -> httpx.Response:
    """POST a body as JSON, with NaN, Infinity and unpaired surrogates as Python's json writes them."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await client.post(path, content=content, headers={"Content-Type": "application/json"})


# Bodies


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["JSON object"]),
        (b"{", ["not valid JSON"]),
        (b'{"model": "sim",}', ["not valid JSON"]),
        (b"model=sim&prompt=x", ["not valid JSON"]),
        (b"[]", ["JSON object"]),
        (b'"text"', ["JSON object"]),
        (b"7", ["JSON object"]),
        (b"null", ["JSON object"]),
        (b'{"model": "sim", "prompt": "\xff\xfe"}', ["not valid JSON", "UTF-8"]),
        (b'{"model": "sim", "prompt": ' + b"[" * DEEP + b"]" * DEEP + b"}", ["not valid JSON", "nested"]),
        (b'{"model": "sim", "seed": ' + b"9" * 5000 + b"}", ["not valid JSON", "digits"]),
    ],
    ids=lambda value: str(value[:24]) if isinstance(value, bytes) else None,
)
async def test_a_body_that_is_not_a_json_object_is_rejected(
    sim: httpx.AsyncClient, path: str, content: bytes, words: list[str]
) -> None:
    assert_error(await send(sim, path, content), *words)


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", None])
async def test_another_content_type_is_rejected(sim: httpx.AsyncClient, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    response = await sim.post(JOBS, content=json.dumps(body_for(JOBS)), headers=headers)
    assert_error(response, "Content-Type: application/json")


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("size", [BODY_LIMIT + 1, 20 * BODY_LIMIT])
async def test_a_body_over_the_limit_is_rejected(sim: httpx.AsyncClient, path: str, size: int) -> None:
    assert_error(await send(sim, path, b" " * size), str(BODY_LIMIT), status=413)


@pytest.mark.parametrize("size", [BODY_LIMIT + 1, 20 * BODY_LIMIT])
async def test_a_chunked_body_over_the_limit_is_rejected(sim: httpx.AsyncClient, size: int) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(size // 1000 + 1):
            yield b" " * 1000

    response = await sim.post(JOBS, content=chunks(), headers={"Content-Type": "application/json"})
    assert "content-length" not in response.request.headers
    assert_error(response, str(BODY_LIMIT), status=413)


async def test_a_body_at_the_limit_is_accepted(sim: httpx.AsyncClient) -> None:
    body = json.dumps(body_for(JOBS)).encode()
    response = await send(sim, JOBS, body + b" " * (BODY_LIMIT - len(body)))
    assert response.status_code == 202


# Models and input


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("model", ["gpt-4", "SIM", "sim ", "../sim", "sim\x00", "x" * 5000])
async def test_an_unknown_model_is_rejected_with_the_known_ones(sim: httpx.AsyncClient, path: str, model: str) -> None:
    response = await send(sim, path, body_for(path, model=model))
    assert_error(response, "sim, small, orphan", status=404, param="model", code="model_not_found")


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("model", ["", 7, ["sim"], None])
async def test_a_model_name_must_be_a_string(sim: httpx.AsyncClient, path: str, model: object) -> None:
    assert_error(await send(sim, path, body_for(path, model=model)), "model", param="model")


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("name", ["best_of", "use_beam_search", "guided_json", "vllm_xargs"])
async def test_an_unsupported_parameter_that_changes_the_answer_is_rejected_by_name(
    sim: httpx.AsyncClient, path: str, name: str
) -> None:
    response = await send(sim, path, body_for(path, **{name: 3}))
    assert_error(response, name, "not supported", param=name)


@pytest.mark.parametrize(
    ("given", "param", "words"),
    [
        ({}, "messages", ["messages", "prompt", "exactly one"]),
        ({"prompt": "x", "messages": MESSAGES}, "messages", ["messages", "prompt", "exactly one"]),
        ({"prompt": ""}, "prompt", ["must not be empty"]),
        ({"prompt": []}, "messages", ["exactly one"]),
        ({"prompt": 7}, "prompt", ["a string or a list of token ids"]),
        ({"prompt": ["a", "b"]}, "prompt", ["a string or a list of token ids"]),
        ({"prompt": [1, True]}, "prompt", ["a string or a list of token ids"]),
        ({"prompt": "x", "tools": TOOLS}, "tools", ["requires `messages`"]),
        ({"prompt": "x", "logprobs": True}, "logprobs", ["valid integer"]),
        ({"prompt": "x", "logprobs": 21}, "logprobs", ["less than or equal to 20"]),
        ({"messages": []}, "messages", ["exactly one"]),
        ({"messages": "hello"}, "messages", ["valid list"]),
        ({"messages": ["hello"]}, "messages[0]", ["must be an object"]),
        ({"messages": [{"role": "user"}]}, "messages[0].content", ["required"]),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", ["required"]),
        ({"messages": [{"content": "x"}]}, "messages[0].role", ["required"]),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", ["'user'", "'assistant'"]),
        ({"messages": [*MESSAGES, {"role": "user", "content": 7}]}, "messages[1].content", ["valid string"]),
        (
            {"messages": [*MESSAGES, {"role": "assistant", "content": "x", "audio": {"id": "a"}}]},
            "messages[1].audio",
            ["text only"],
        ),
        ({"prompt": "x", "stream": True}, "stream", ["/v1/jobs/ID/stream"]),
    ],
)
async def test_a_native_job_requires_exactly_one_valid_input(
    sim: httpx.AsyncClient, given: dict[str, Any], param: str, words: list[str]
) -> None:
    assert_error(await send(sim, JOBS, {"model": "sim", **given}), *words, param=param)


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"messages": None}, "messages", ["required"]),
        ({"messages": []}, "messages", ["at least 1"]),
        ({"prompt": "x"}, "prompt", ["takes messages"]),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", ["'user'"]),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", ["valid string"]),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"arguments": "{}"}}]}]},
            "messages[0].tool_calls[0].function.name",
            ["required"],
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content",
            ["part 0", "image_url.url must be a data URL or an http(s) URL"],
        ),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content", ["part 0"]),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content", ["part 0"]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 7}]}]}, "messages[0].content", ["part 0"]),
        ({"stream_options": {"include_usage": True}}, "stream_options", ["stream=true"]),
        ({"stream": True, "stream_options": [1]}, "stream_options", ["must be an object"]),
        ({"stream": "yes"}, "stream", ["valid boolean"]),
        ({"max_completion_tokens": 0}, "max_completion_tokens", ["greater than or equal to 1"]),
        ({"max_completion_tokens": "many"}, "max_completion_tokens", ["valid integer"]),
        ({"max_completion_tokens": 3, "min_tokens": 4}, "min_tokens", ["at most max_tokens=3"]),
        ({"logprobs": 1}, "logprobs", ["valid boolean"]),
        ({"top_logprobs": 2}, "top_logprobs", ["requires logprobs"]),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", ["less than or equal to 20"]),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", ["'function'"]),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", ["required"]),
        ({"tool_choice": "required"}, "tool_choice", ["requires tools"]),
        ({"tools": TOOLS, "tool_choice": "maybe"}, "tool_choice", ["auto", "required"]),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice", ["auto", "required"]),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}},
            "tool_choice",
            ["'other'", "not in tools"],
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type", ["'json_schema'"]),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", ["json_schema is required"]),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            ["required"],
        ),
        ({"response_format": {"type": "structural_tag"}}, "response_format.format", ["structures"]),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs", ["exactly one of json, regex"]),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", ["exactly one of"]),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", ["JSON Schema"]),
        ({"functions": [{"name": "f"}]}, "functions", ["use tools"]),
        ({"modalities": ["text", "audio"]}, "modalities", ["text only"]),
        ({"web_search_options": {"search_context_size": "low"}}, "web_search_options", ["search the web"]),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "response_format",
            ["mutually exclusive"],
        ),
        ({"continue_final_message": True}, "continue_final_message", ["add_generation_prompt"]),
        ({"reasoning_effort": "some"}, "reasoning_effort", ["'high'"]),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs", ["template"]),
        ({"chat_template": "x"}, "chat_template", ["own template"]),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", ["stream=true"]),
    ],
)
async def test_chat_requests_are_validated(
    sim: httpx.AsyncClient, changes: dict[str, Any], param: str, words: list[str]
) -> None:
    assert_error(await send(sim, CHAT, body_for(CHAT, **changes)), *words, param=param)


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"prompt": None}, "prompt", ["required"]),
        ({"prompt": ""}, "prompt", ["must not be empty"]),
        ({"prompt": []}, "prompt", ["must not be empty"]),
        ({"prompt": ["a", ""]}, "prompt", ["must not be empty"]),
        ({"prompt": [[1], []]}, "prompt", ["must not be empty"]),
        ({"prompt": ["a", 1]}, "prompt", ["a string or a list of token ids"]),
        ({"prompt": ["a", [1]]}, "prompt", ["a string or a list of token ids"]),
        ({"prompt": {"text": "a"}}, "prompt", ["a string or a list of token ids"]),
        ({"prompt": ["a"] * 1025}, "prompt", ["1025 prompts; the maximum is 1024"]),
        ({"max_tokens": 0}, "max_tokens", ["at least 1", "`echo`"]),
        ({"logprobs": True}, "logprobs", ["valid integer"]),
        ({"logprobs": 21}, "logprobs", ["less than or equal to 20"]),
        ({"top_logprobs": 1}, "top_logprobs", ["as logprobs"]),
        ({"tools": TOOLS}, "tools", ["/v1/chat/completions"]),
        ({"suffix": "x"}, "suffix", ["not supported"]),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", ["stream=true"]),
        ({"messages": MESSAGES}, "messages", ["takes prompt"]),
        ({"max_tokens": None, "min_tokens": 17}, "min_tokens", ["at most max_tokens=16"]),
        ({"stream_options": {"include_usage": True}}, "stream_options", ["stream=true"]),
    ],
)
async def test_completion_requests_are_validated(
    sim: httpx.AsyncClient, changes: dict[str, Any], param: str, words: list[str]
) -> None:
    assert_error(await send(sim, COMPLETIONS, body_for(COMPLETIONS, **changes)), *words, param=param)


async def test_text_parts_and_one_prompt_in_a_list_are_accepted(sim: httpx.AsyncClient) -> None:
    parts = [{"type": "text", "text": "the"}, {"type": "text", "text": "mill"}]
    chat = await send(sim, CHAT, body_for(CHAT, messages=[{"role": "user", "content": parts}]))
    plain = await send(sim, CHAT, body_for(CHAT, messages=[{"role": "user", "content": "the\nmill"}]))
    assert chat.json()["choices"] == plain.json()["choices"]
    assert (await send(sim, COMPLETIONS, body_for(COMPLETIONS, prompt=["the mill"]))).status_code == 200


async def test_max_completion_tokens_overrides_max_tokens(sim: httpx.AsyncClient) -> None:
    response = await send(sim, CHAT, body_for(CHAT, max_tokens=9, max_completion_tokens=3))
    assert response.json()["usage"]["completion_tokens"] == 3


# Sampling


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("max_tokens", -1, "greater than or equal to"),
        ("max_tokens", 2**31, "less than"),
        ("max_tokens", 10**400, "less than"),
        ("max_tokens", 1.5, "valid integer"),
        ("max_tokens", "5", "valid integer"),
        ("max_tokens", "many", "valid integer"),
        ("max_tokens", True, "valid integer"),
        ("max_tokens", [5], "valid integer"),
        ("max_tokens", {"n": 5}, "valid integer"),
        ("min_tokens", -1, "greater than or equal to 0"),
        ("temperature", -0.1, "greater than or equal to 0"),
        ("temperature", 2.1, "less than or equal to 2"),
        ("temperature", 10**400, "number"),
        ("temperature", "hot", "valid number"),
        ("temperature", "0.5", "valid number"),
        ("temperature", [1], "valid number"),
        ("top_p", 0, "greater than 0"),
        ("top_p", 1.1, "less than or equal to 1"),
        ("top_k", -2, "greater than or equal to -1"),
        ("top_k", 0.5, "valid integer"),
        ("min_p", 2, "less than or equal to 1"),
        ("min_p", -1, "greater than or equal to 0"),
        ("presence_penalty", -2.5, "greater than or equal to -2"),
        ("frequency_penalty", 3, "less than or equal to 2"),
        ("repetition_penalty", 0, "greater than 0"),
        ("n", 0, "greater than or equal to 1"),
        ("n", 17, "less than or equal to 16"),
        ("seed", 2**63, "less than or equal to"),
        ("seed", -(2**63) - 1, "greater than or equal to"),
        ("seed", "lucky", "valid integer"),
        ("stop", [""], "at least 1 character"),
        ("stop", "", "at least 1 character"),
        ("stop", ["x"] * 17, "at most 16"),
        ("stop", 7, "valid list"),
        ("stop", ["x", 7], "valid string"),
        ("logit_bias", {"water": 1}, "keys must be token ids, got 'water'"),
        ("logit_bias", {"-1": 1}, "keys must be token ids, got '-1'"),
        ("logit_bias", {"٣": 1}, "keys must be token ids"),
        ("logit_bias", {"1": "much"}, "valid number"),
        ("logit_bias", [1], "must be an object"),
        ("ignore_eos", "maybe", "valid boolean"),
        ("priority", -1, "greater than or equal to 0"),
        ("priority", 10, "less than or equal to 9"),
        ("priority", "urgent", "valid integer"),
        ("metadata", "text", "must be an object"),
        ("metadata", {"k": 7}, "valid string"),
        ("metadata", {"k": "x" * 513}, "at most 512"),
        ("metadata", {"k" * 65: "x"}, "at most 64"),
        ("metadata", {"": "x"}, "at least 1"),
        ("metadata", {str(i): "x" for i in range(17)}, "at most 16"),
    ],
)
async def test_a_parameter_out_of_bounds_is_rejected_by_name(
    sim: httpx.AsyncClient, path: str, field: str, value: object, words: str
) -> None:
    response = await send(sim, path, body_for(path, **{field: value}))
    named = response.json()["error"]["param"]
    assert named is not None
    assert named == field or named.startswith((f"{field}.", f"{field}[")), named
    assert_error(response, f"{field}", words, param=named)


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("field", ["max_tokens", "temperature", "top_p", "min_p", "seed", "presence_penalty"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_numbers_must_be_finite(sim: httpx.AsyncClient, path: str, field: str, value: str) -> None:
    body = json.dumps(body_for(path, **{field: "@"})).replace('"@"', value).encode()
    assert_error(await send(sim, path, body), field, param=field)


@pytest.mark.parametrize("path", POSTS)
async def test_contradictory_parameters_are_rejected(sim: httpx.AsyncClient, path: str) -> None:
    response = await send(sim, path, body_for(path, min_tokens=5, max_tokens=4))
    assert_error(response, "min_tokens must be at most max_tokens=4, got 5", param="min_tokens")
    response = await send(sim, path, body_for(path, n=2, temperature=0))
    assert_error(response, "n must be 1 with greedy sampling (temperature 0), got 2", param="n")


@pytest.mark.parametrize("path", POSTS)
async def test_a_request_that_exceeds_the_context_is_rejected_at_submit(sim: httpx.AsyncClient, path: str) -> None:
    long = "water " * CONTEXT
    given = {"messages": [{"role": "user", "content": long}]} if path == CHAT else {"prompt": long}
    field = next(iter(given))
    response = await send(sim, path, body_for(path, **given))
    assert_error(response, f"context is {CONTEXT} tokens", "the prompt has 409", param=field)
    response = await send(sim, path, body_for(path, max_tokens=CONTEXT + 1))
    assert_error(response, f"context is {CONTEXT} tokens", f"got {CONTEXT + 1}", param="max_tokens")


# Invalid Unicode


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "changes",
    [
        {"model": SURROGATE},
        {"stop": [SURROGATE]},
        {"metadata": {"k": SURROGATE}},
        {"metadata": {SURROGATE: "v"}},
        {"logit_bias": {SURROGATE: 1}},
        {"seed": SURROGATE},
    ],
)
async def test_unpaired_surrogates_are_rejected(sim: httpx.AsyncClient, path: str, changes: dict[str, Any]) -> None:
    response = await send(sim, path, body_for(path, **changes))
    named = response.json()["error"]["param"]
    assert named is not None
    assert_error(response, param=named)


@pytest.mark.parametrize(
    ("path", "field", "changes"),
    [
        (JOBS, "prompt", {"prompt": f"a{SURROGATE}"}),
        (COMPLETIONS, "prompt", {"prompt": f"a{SURROGATE}"}),
        (COMPLETIONS, "prompt", {"prompt": [f"a{SURROGATE}"]}),
        (JOBS, "messages[0].content", {"prompt": None, "messages": [{"role": "user", "content": SURROGATE}]}),
        (JOBS, "messages[0].name", {"prompt": None, "messages": [{**MESSAGES[0], "name": SURROGATE}]}),
        (CHAT, "messages[0].content", {"messages": [{"role": "user", "content": SURROGATE}]}),
        (
            CHAT,
            "messages[0].content",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": SURROGATE}]}]},
        ),
        (CHAT, "messages[0].role", {"messages": [{"role": SURROGATE, "content": "x"}]}),
        (CHAT, "structured_outputs.regex", {"structured_outputs": {"regex": SURROGATE}}),
        (CHAT, "structured_outputs.json", {"structured_outputs": {"json": {"enum": [SURROGATE]}}}),
        (CHAT, "response_format.format", {"response_format": {"type": "structural_tag", "format": {SURROGATE: 1}}}),
        (CHAT, "chat_template_kwargs", {"chat_template_kwargs": {"a": [SURROGATE]}}),
        (
            CHAT,
            "tools[0].function.parameters",
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"enum": [SURROGATE]}}}]},
        ),
    ],
)
async def test_unpaired_surrogates_in_the_prompt_are_rejected(
    sim: httpx.AsyncClient, path: str, field: str, changes: dict[str, Any]
) -> None:
    assert_error(await send(sim, path, body_for(path, **changes)), field, param=field)


@pytest.mark.parametrize("path", POSTS)
async def test_an_unpaired_surrogate_in_a_parameters_name(sim: httpx.AsyncClient, path: str) -> None:
    assert_error(await send(sim, path, body_for(path, **{SURROGATE: 1})), "parameter name", "unpaired surrogate")


async def test_paired_surrogates_are_one_character(sim: httpx.AsyncClient) -> None:
    content = b'{"model": "sim", "prompt": "x", "max_tokens": 1, "metadata": {"k": "\\ud83c\\udf0a"}}'
    job = (await send(sim, JOBS, content)).json()
    assert (await wait_for_end(sim, job["id"]))["metadata"] == {"k": "🌊"}


async def test_nul_characters_are_accepted(sim: httpx.AsyncClient) -> None:
    metadata = {"a\x00b": "c\x00d"}
    job = await submit(sim, prompt="the\x00mill", metadata=metadata, stop=["\x00"], max_tokens=8)
    done = await wait_for_end(sim, job["id"])
    assert (done["status"], done["metadata"]) == ("incomplete", metadata)
    assert text_of(await follow(sim, job["id"])) == done["output_text"]
    messages = [{"role": "user", "content": "the\x00mill", "name": "\x00"}]
    assert (await send(sim, CHAT, body_for(CHAT, messages=messages))).status_code == 200
    assert (await send(sim, COMPLETIONS, body_for(COMPLETIONS, prompt="\x00"))).status_code == 200


# Unknown resources


UNKNOWN_IDS = [
    "job_nope",
    "job_" + "0" * 32,
    "%00",
    "job_%00",
    "%ff%fe",
    "%F0%9F%8C%8A",
    "%ED%A0%80",
    "job_0' OR '1'='1",
    "%25",
    "x" * 20_000,
]


@pytest.mark.parametrize("job_id", UNKNOWN_IDS, ids=lambda job_id: job_id[:20])
@pytest.mark.parametrize(("method", "suffix"), [("GET", ""), ("GET", "/stream"), ("POST", "/cancel"), ("DELETE", "")])
async def test_an_unknown_job_is_not_found(sim: httpx.AsyncClient, method: str, suffix: str, job_id: str) -> None:
    url = sim.base_url.copy_with(raw_path=f"/v1/jobs/{job_id}{suffix}".encode())
    assert_error(await sim.request(method, url), "no job", status=404, param="job_id", code="job_not_found")


@pytest.mark.parametrize("name", ["nope", "%00", "%ff", "a/b", "x" * 5000], ids=lambda name: name[:20])
async def test_an_unknown_model_is_not_found(sim: httpx.AsyncClient, name: str) -> None:
    url = sim.base_url.copy_with(raw_path=f"/v1/models/{name}".encode())
    assert_error(await sim.get(url), "does not exist", status=404, param="model", code="model_not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", JOBS, "POST"),
        ("DELETE", JOBS, "POST"),
        ("PATCH", "/v1/jobs/job_x", "GET"),
        ("GET", "/v1/jobs/job_x/cancel", "POST"),
        ("POST", "/v1/jobs/job_x/stream", "GET"),
        ("GET", CHAT, "POST"),
        ("POST", "/v1/models", "GET"),
        ("POST", "/healthz", "GET"),
    ],
)
async def test_a_wrong_method_is_rejected(sim: httpx.AsyncClient, method: str, path: str, allowed: str) -> None:
    response = await sim.request(method, path)
    assert_error(response, method, path, status=405, code="method_not_allowed")
    assert allowed in response.headers["allow"]


@pytest.mark.parametrize("path", ["//", "/v1", "/v1/job", "/v1/jobs/job_x/cancel/now", "/v2/jobs", "/%00", "/v1/file"])
async def test_an_unknown_path_is_not_found(sim: httpx.AsyncClient, path: str) -> None:
    response = await sim.get(sim.base_url.copy_with(raw_path=path.encode()))
    assert_error(response, "GET", status=404, code="not_found")


# Cursors, waiting and lists


@pytest.fixture(scope="module")
def ended_job(sim_stack: Stack) -> dict[str, Any]:
    """A job that has ended."""
    headers = {"Authorization": f"Bearer {KEY}", "Prefer": "wait=20"}
    response = httpx.post(f"{sim_stack.url}{JOBS}", json=body_for(JOBS), headers=headers, timeout=30)
    assert response.status_code == 200
    job: dict[str, Any] = response.json()
    return job


@pytest.mark.parametrize("cursor", ["abc", "-1", "1.5", "", " ", "1e3", "0x1", "٣", "²", "9" * 17, "9" * 5000, "\x00"])
async def test_a_cursor_must_be_a_number(sim: httpx.AsyncClient, ended_job: dict[str, Any], cursor: str) -> None:
    response = await sim.get(ended_job["stream_url"], params={"starting_after": cursor})
    assert_error(response, "starting_after", "event id (a number)", param="starting_after")


@pytest.mark.parametrize("cursor", [b"abc", b"-1", b"1.5", b"1e3", b"\xb2", b"9" * 17, b"9" * 5000])
async def test_a_last_event_id_must_be_a_number(
    sim: httpx.AsyncClient, ended_job: dict[str, Any], cursor: bytes
) -> None:
    response = await sim.get(ended_job["stream_url"], headers={b"Last-Event-ID": cursor})
    assert_error(response, "Last-Event-ID", "event id (a number)", param="Last-Event-ID")


@pytest.mark.parametrize("beyond", [100, 2**53])
async def test_a_cursor_beyond_the_end_is_rejected(
    sim: httpx.AsyncClient, ended_job: dict[str, Any], beyond: int
) -> None:
    response = await sim.get(ended_job["stream_url"], params={"starting_after": beyond})
    assert_error(response, f"{beyond} is beyond the job's last event", param="starting_after")
    response = await sim.get(ended_job["stream_url"], headers={"Last-Event-ID": str(beyond)})
    assert_error(response, f"{beyond} is beyond the job's last event", param="Last-Event-ID")


async def test_a_cursor_of_a_job_without_events_is_rejected(sim: httpx.AsyncClient) -> None:
    job = await submit(sim, model="orphan")
    response = await sim.get(job["stream_url"], params={"starting_after": 7})
    assert_error(response, "7 is beyond the job's last event, 0", param="starting_after")
    await sim.post(job["cancel_url"])


async def test_an_empty_last_event_id_is_ignored(sim: httpx.AsyncClient, ended_job: dict[str, Any]) -> None:
    response = await sim.get(ended_job["stream_url"], headers={"Last-Event-ID": ""})
    assert response.status_code == 200
    assert response.text.startswith("id: 1\n")


@pytest.mark.parametrize("wait", ["abc", "-1", "1.5", "", "\xb2", "9" * 5000])
async def test_a_wait_must_be_a_number_of_seconds(sim: httpx.AsyncClient, wait: str) -> None:
    headers = {b"Prefer": f"respond-async, wait={wait}".encode("latin-1")}
    response = await sim.post(JOBS, json=body_for(JOBS), headers=headers)
    assert_error(response, "Prefer: wait must be a number of seconds", param="Prefer")


async def test_a_long_wait_is_capped(sim: httpx.AsyncClient) -> None:
    response = await sim.post(JOBS, json=body_for(JOBS), headers={"Prefer": "wait=100000"})
    assert (response.status_code, response.headers["preference-applied"]) == (200, "wait=60")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("limit", "0", "greater than or equal to 1"),
        ("limit", "101", "less than or equal to 100"),
        ("limit", "abc", "valid integer"),
        ("limit", "9" * 5000, "integer"),
        ("status", "done", "'queued'"),
        ("status", "", "'queued'"),
        ("after", "garbage", "job id"),
        ("after", "\x00", "job id"),
        ("after", "", "job id"),
        ("model", "\x00", "model"),
    ],
)
async def test_list_parameters_are_validated(sim: httpx.AsyncClient, name: str, value: str, words: str) -> None:
    param = "status[0]" if name == "status" else name  # it may be repeated
    assert_error(await sim.get(JOBS, params={name: value}), name, words, param=param)


# Keys


WRONG_KEYS: list[bytes | None] = [
    None,
    b"",
    b"Bearer",
    b"Basic dXNlcjpwYXNz",
    KEY.encode(),
    b"Bearer " + KEY.encode() + b"x",
    b"Bearer " + KEY.encode()[:-1],
    b"Bearer " + KEY.upper().encode(),
    b"Bearer \xff\xfe",
    "Bearer 🌊".encode(),
    b"Bearer " + b"k" * 20_000,
]


@pytest.mark.parametrize("authorization", WRONG_KEYS, ids=lambda value: str(value)[:30])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", JOBS),
        ("GET", JOBS),
        ("GET", "/v1/jobs/job_x"),
        ("GET", "/v1/jobs/job_x/stream"),
        ("POST", "/v1/jobs/job_x/cancel"),
        ("DELETE", "/v1/jobs/job_x"),
        ("POST", CHAT),
        ("POST", COMPLETIONS),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/sim"),
    ],
)
async def test_every_route_requires_a_valid_key(
    sim_stack: Stack, method: str, path: str, authorization: bytes | None
) -> None:
    headers = {} if authorization is None else {b"Authorization": authorization}
    async with httpx.AsyncClient(base_url=sim_stack.url) as client:
        response = await client.request(
            method, path, headers=headers, json=body_for(path) if method == "POST" else None
        )
    assert_error(response, status=401, code="invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"


async def test_a_revoked_key_is_rejected(sim_stack: Stack) -> None:
    key = sim_stack.command("api.keys", "create", "revoked").stdout.strip()
    sim_stack.command("api.keys", "revoke", key_id(sim_stack, key))
    async with sim_stack.client(headers={"Authorization": f"Bearer {key}"}) as client:
        assert_error(await client.get("/v1/models"), "not valid", status=401, code="invalid_api_key")


async def test_a_cached_key_is_rejected_soon_after_it_is_revoked(sim_stack: Stack) -> None:
    """Within HEADRACE_KEY_CACHE_S, by default 5."""
    key = sim_stack.command("api.keys", "create", "used").stdout.strip()
    async with sim_stack.client(headers={"Authorization": f"Bearer {key}"}) as client:
        assert (await client.get("/v1/models")).status_code == 200
        sim_stack.command("api.keys", "revoke", key_id(sim_stack, key))

        async def answers_401() -> bool:
            return (await client.get("/v1/models")).status_code == 401

        await eventually(answers_401, "the key is rejected", within_s=8)


# Arbitrary bodies


VALUES = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=20),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = (
    "model", "messages", "prompt", "max_tokens", "max_completion_tokens", "min_tokens", "temperature", "top_p", "top_k",
    "min_p", "n", "stop", "seed", "logit_bias", "metadata", "priority", "stream", "stream_options", "ignore_eos",
)  # fmt: skip
CHANGES = some.dictionaries(some.sampled_from(FIELDS) | some.text(max_size=8), VALUES, min_size=1, max_size=3)


@example_count(150, long=5000)
@hypothesis.given(path=some.sampled_from(POSTS), changes=CHANGES)
def test_no_body_causes_an_internal_error(sim_stack: Stack, path: str, changes: dict[str, Any]) -> None:
    body = body_for(path, **changes)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    response = httpx.post(sim_stack.url + path, content=json.dumps(body), headers=headers, timeout=60)
    assert response.status_code in (200, 202, 400, 404), response.text
    if response.status_code >= 400:
        error = response.json()["error"]
        assert error["param"] or "body" in error["message"], error


async def test_a_job_runs_after_all_invalid_requests(sim: httpx.AsyncClient) -> None:
    job = await submit(sim, max_tokens=20)
    done = await wait_for_end(sim, job["id"])
    assert done["status"] == "incomplete"
    assert text_of(await follow(sim, job["id"])) == done["output_text"]
