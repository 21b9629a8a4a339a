"""What unknown, empty and integral members mean: the same in all schemas and at every depth.

The cases are generated: `FULL` has a request of each API with every object that its schema knows.
"""

from __future__ import annotations

import copy
import json
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Union, get_args, get_origin
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as some
from pydantic import BaseModel, ValidationError

from api.anthropic.schemas import CountTokensRequest, MessagesRequest
from api.batches.schemas import BatchCreate
from api.http.members import MAX_HEADER_BYTES, MAX_NAMES, EmptyIsValue, JsonForm, Reading, Shape, header_value
from api.http.submit_headers import AnswerParameters
from api.jobs import dialects
from api.jobs.schemas import JobCreate
from api.openai.schemas import ChatCompletionRequest, CompletionRequest
from api.responses.schemas import ResponseCreate
from shared.config.settings import REPOSITORY
from shared.domain.answer_options import CacheOptions
from shared.domain.errors import InvalidRequest
from shared.domain.opaque import OpaquePart
from shared.telemetry.instruments import Exporter
from shared.telemetry.metrics import Metrics
from tests.support.members import member_reader, read

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": ["string", "null"], "enum": [], "default": 1.0}},
}
SAMPLING: dict[str, Any] = {
    "n": 2, "temperature": 0.5, "top_p": 0.5, "top_k": 4, "min_p": 0.1, "max_tokens": 8, "min_tokens": 1, "stop": ["x"],
    "seed": 3, "presence_penalty": 1, "frequency_penalty": 1, "repetition_penalty": 1.1, "logit_bias": {"1": 2.0},
    "thinking_token_budget": 9, "ignore_eos": True, "stop_token_ids": [1, 2], "allowed_token_ids": [3, 4],
    "bad_words": ["y"], "include_stop_str_in_output": True, "skip_special_tokens": False,
    "spaces_between_special_tokens": False, "priority": 2, "prompt_logprobs": 1,
}  # fmt: skip
FUNCTION = {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True}
OPAQUE = OpaquePart("gemini", "thinking", {}).encoded()
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
PNG = "data:image/png;base64,iVBORw0KGgo="
CONVERSATION: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hello"}], "name": "n"},
        {"role": "assistant", "content": "hm", "reasoning": "r", "tool_calls": [CALL], "opaque": [OPAQUE]},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}},
                {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0=", "filename": "a.pdf"}},
            ],
        },
        {"role": "tool", "content": "1", "tool_call_id": "c"},
    ],
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": False,
    "reasoning_effort": "low",
    "include_reasoning": False,
    "chat_template_kwargs": {"a": None},
    "documents": [{"title": "t"}],
    "extra_body": {"a": None},
}
OPENAI: dict[str, Any] = {"user": "u", "metadata": {"k": "v"}, "stream": True}
FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "s", "schema": SCHEMA, "description": "d", "strict": True},
}
ANTHROPIC: dict[str, Any] = {
    "model": "m",
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
                {"type": "document", "source": {"type": "url", "url": "https://a.b/c.pdf"}, "title": "t"},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": "s"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "tool_use", "id": "c", "name": "f", "input": {"a": None}, "caller": {"type": "direct"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "c",
                    "is_error": True,
                    "content": [{"type": "text", "text": "1"}],
                }
            ],
        },
    ],
    "tools": [
        {
            "type": "custom",
            "name": "f",
            "description": "d",
            "input_schema": SCHEMA,
            "strict": True,
            "cache_control": {"type": "ephemeral"},
        }
    ],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
    "output_format": {"type": "json_schema", "schema": SCHEMA},
    "cache_control": {"type": "ephemeral"},
}
FULL: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "job": (JobCreate, {"model": "m", **SAMPLING, **CONVERSATION, "logprobs": 1, "user": "u", "metadata": {"k": "v"}}),
    "chat": (
        ChatCompletionRequest,
        {
            "model": "m", **SAMPLING, **CONVERSATION, **OPENAI,
            "max_completion_tokens": 9, "logprobs": True, "top_logprobs": 2, "response_format": FORMAT,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True}, "prompt_logprobs": None,
        },
    ),
    "structured chat": (
        ChatCompletionRequest,
        {
            "model": "m",
            "messages": [{"role": "user", "content": "x"}],
            "structured_outputs": {"json": SCHEMA},
        },
    ),
    "completion": (
        CompletionRequest,
        {
            "model": "m", "prompt": [[1, 2], [3]], **SAMPLING, **OPENAI, "prompt_logprobs": None,
            "stream_options": {"include_usage": True}, "logprobs": 1, "echo": True,
        },
    ),
    "message": (
        MessagesRequest,
        {
            **ANTHROPIC,
            "max_tokens": 2048, "stop_sequences": ["x"], "stream": True, "temperature": 0.5, "top_k": 3, "top_p": 1,
            "metadata": {"user_id": "u"}, "priority": 2, "extra_body": {"a": None},
            "context_management": {"edits": [{
                "type": "clear_tool_uses_20250919", "trigger": {"type": "input_tokens", "value": 9},
                "keep": {"type": "tool_uses", "value": 1}, "clear_at_least": {"type": "input_tokens", "value": 1},
                "exclude_tools": ["a"], "clear_tool_inputs": ["a"],
            }]},
        },
    ),
    "count_tokens": (CountTokensRequest, ANTHROPIC),
    "response": (
        ResponseCreate,
        {
            "model": "m",
            "input": [
                {"type": "message", "role": "user", "content": [
                    {"type": "input_text", "text": "hello"}, {"type": "input_image", "image_url": PNG},
                    {"type": "input_file", "file_id": "file-1"}]},
                {"type": "reasoning", "id": "rs", "encrypted_content": OPAQUE,
                 "summary": [{"type": "summary_text", "text": "s"}],
                 "content": [{"type": "reasoning_text", "text": "s"}], "status": "completed"},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "id": "fc"},
                {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "1"}]},
            ],
            "instructions": "i", "previous_response_id": "resp_x", "parallel_tool_calls": False,
            "tools": [{"type": "function", **FUNCTION}],
            "tool_choice": {"type": "function", "name": "f"},
            "text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA, "description": "d",
                                "strict": True}},
            "reasoning": {"effort": "low"}, "max_output_tokens": 8, "temperature": 1, "top_p": 0.5, "top_logprobs": 2,
            "include": [dialects.LOGPROBS], "metadata": {"k": "v"}, "store": True, "background": True, "stream": True,
            "stream_options": {"include_obfuscation": False}, "truncation": "disabled", "service_tier": "auto",
            "context_management": [{"type": "compaction", "compact_threshold": 1000}],
            "user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "priority": 1, "seed": 1, "top_k": 1,
            "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": 1, "repetition_penalty": 1, "stop": ["x"],
            "extra_body": {"a": None}, "cache": {"ttl": 60}, "context": {"strategy": "sliding_window"},
            "webhook": "https://example.com/hook", "webhook_events_filter": ["response.*"],
        },
    ),
    "batch": (
        BatchCreate,
        {
            "input_file_id": "file-x",
            "endpoint": "/v1/responses",
            "completion_window": "24h",
            "metadata": {"k": "v"},
            "output_expires_after": {"anchor": "created_at", "seconds": 3600},
            "webhook": "https://example.com/hook",
            "webhook_events_filter": ["batch.*"],
        },
    ),
}  # fmt: skip
EMPTY: tuple[Any, ...] = (None, [], {})
APIS = pytest.mark.parametrize("api", FULL)
Steps = tuple[str | int, ...]


def alternatives(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        yield from alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for item in get_args(annotation):
            yield from alternatives(item)
    else:
        yield annotation


def models(annotation: Any, value: Any, path: Steps) -> Iterator[tuple[Steps, type[BaseModel]]]:
    """The objects of a request with their schemas."""
    for item in alternatives(annotation):
        if isinstance(value, list) and get_origin(item) is list:
            for position, part in enumerate(value):
                yield from models(get_args(item)[0], part, (*path, position))
        elif isinstance(value, dict) and isinstance(item, type) and issubclass(item, BaseModel):
            kind = item.model_fields.get("type")
            if kind is not None and "type" in value and value["type"] not in str(kind.annotation):
                continue
            yield path, item
            for name, field in item.model_fields.items():
                form = next((form.type for form in field.metadata if isinstance(form, JsonForm)), field.annotation)
                yield from models(form, value.get(field.alias or name), (*path, field.alias or name))


def at(body: Any, path: Steps) -> Any:
    for step in path:
        body = body[step]
    return body


def changed(body: dict[str, Any], path: Steps, change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    body = copy.deepcopy(body)
    change(at(body, path))
    return body


def with_member(body: dict[str, Any], path: Steps, member: str, value: Any) -> dict[str, Any]:
    """The body with a member of the object at a path set to a value."""
    return changed(body, path, lambda item: item.update({member: value}))


def without_member(body: dict[str, Any], path: Steps, member: str) -> dict[str, Any]:
    return changed(body, path, lambda item: item.pop(member, None))


def result(schema: type[BaseModel], body: Any) -> Any:
    """What a body means: its fields, or the error."""
    try:
        return read(schema, body).model_dump(mode="json", exclude_unset=True)
    except ValidationError as invalid:
        return [(error["type"], error["loc"], error["msg"]) for error in invalid.errors(include_input=False)]


def is_object(annotation: Any) -> bool:
    """Whether any JSON object is a value, such as a schema that accepts everything."""
    return any(get_origin(item) is dict and get_args(item)[1] is Any for item in alternatives(annotation))


@APIS
def test_the_requests_are_valid_and_complete(api: str) -> None:
    schema, body = FULL[api]
    if api == "response":
        assert set(body) == {field.alias or name for name, field in schema.model_fields.items()}
    assert isinstance(result(schema, body), dict), result(schema, body)
    assert member_reader().read(Shape(schema), body) == Reading(
        {name: value for name, value in body.items() if value is not None}
    )


@APIS
def test_null_and_empty_mean_absent_for_every_optional_member(api: str) -> None:
    schema, body = FULL[api]
    tried = 0
    for path, model in models(schema, body, ()):
        for name, field in model.model_fields.items():
            if field.is_required():
                continue
            member = field.alias or name
            absent = result(schema, without_member(body, path, member))
            for empty in EMPTY:
                if empty == {} and (is_object(field.annotation) or EmptyIsValue() in field.metadata):
                    continue
                given = with_member(body, path, member, empty)
                assert result(schema, given) == absent, (path, member, empty)
                tried += 1
    assert tried > 5


@pytest.mark.parametrize("api", [api for api, (schema, _) in FULL.items() if issubclass(schema, AnswerParameters)])
@pytest.mark.parametrize("given", [{}, {"ttl": None}], ids=str)
def test_an_empty_cache_object_turns_the_cache_on(api: str, given: dict[str, Any]) -> None:
    schema, body = FULL[api]
    parameters, without = (read(schema, {**body, "cache": cache}) for cache in (given, None))
    assert isinstance(parameters, AnswerParameters)
    assert isinstance(without, AnswerParameters)
    assert parameters.cache == CacheOptions()
    assert without.cache is None


@APIS
def test_integral_floats_are_integers_everywhere(api: str) -> None:
    schema, body = FULL[api]
    tried = 0
    for path, model in models(schema, body, ()):
        for name, field in model.model_fields.items():
            member = field.alias or name
            value = at(body, path).get(member)
            if int not in alternatives(field.annotation) or not isinstance(value, int):
                continue
            given = with_member(body, path, member, float(value))
            assert result(schema, given) == result(schema, body), (path, member)
            given = with_member(body, path, member, value + 0.5)
            assert "int" in json.dumps(result(schema, given)), (path, member)
            tried += 1
    assert tried > 0 or api == "structured chat"


@pytest.mark.parametrize(
    ("member", "value"),
    [("prompt", [1.0, 2]), ("prompt", [[1.0], [2]]), ("stop_token_ids", [1.0]), ("allowed_token_ids", [2, 3.0])],
)
def test_integral_floats_are_integers_in_lists(member: str, value: Any) -> None:
    body = {"model": "m", "prompt": "x", member: value}
    integers = json.loads(json.dumps(body).replace(".0", ""))
    assert result(CompletionRequest, body) == result(CompletionRequest, integers)
    assert isinstance(result(CompletionRequest, integers), dict)


@APIS
def test_an_unknown_member_is_ignored_by_name_at_every_depth(api: str) -> None:
    schema, body = FULL[api]
    shape, expected = Shape(schema), result(schema, body)
    for path, _ in models(schema, body, ()):
        given = with_member(body, path, "colour", "blue")
        name = "".join("[]" if isinstance(step, int) else f".{step}" for step in (*path, "colour")).lstrip(".")
        assert member_reader().read(shape, given).ignored == (name,)
        assert result(schema, given) == expected
        exact = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in (*path, "colour")).lstrip(".")
        with pytest.raises(InvalidRequest, match="unknown or not supported") as refused:
            member_reader(refuse_unknown=True).read(shape, given)
        assert refused.value.param == exact
        for empty in EMPTY:
            given = with_member(body, path, "colour", empty)
            assert member_reader(refuse_unknown=True).read(shape, given).ignored == ()


RULES = {"job": dialects.JOB, "chat": dialects.CHAT, "completion": dialects.TEXT, "message": dialects.MESSAGES,
         "count_tokens": dialects.COUNT_TOKENS, "response": dialects.RESPONSES}  # fmt: skip


def place(body: dict[str, Any], path: str, value: Any) -> bool:
    """Set the member at a path such as `tools[].strict`, wherever the request has the object."""
    first, _, rest = path.partition(".")
    if not rest:
        body[first] = value
        return True
    inner = body.get(first.removesuffix("[]"))
    items = inner if isinstance(inner, list) else [inner]
    return sum(place(item, rest, value) for item in items if isinstance(item, dict)) > 0


@pytest.mark.parametrize("api", RULES)
def test_known_members_are_refused_or_ignored_as_declared(api: str) -> None:
    schema, rules = FULL[api][0], RULES[api]
    for path in (*rules.refused, *rules.ignored):
        body = copy.deepcopy(FULL[api][1])
        if path.startswith("response_format."):
            body["response_format"] = {"type": "json_object"}
        if path.startswith(("text.", "reasoning.", "stream_options.")) and body.get(path.split(".")[0]) is None:
            continue
        assert place(body, path, {"some": "value"}), path
        if path in rules.refused:
            with pytest.raises(InvalidRequest) as refused:
                read(schema, body)
            assert refused.value.param is not None
            assert rules.refused[path].reason in refused.value.message
            for harmless in rules.refused[path].harmless:
                assert place(body, path, harmless)
                assert member_reader().read(Shape(schema), body).ignored in ((path,), ())
        else:
            assert member_reader().read(Shape(schema), body).ignored == (path,)
            assert result(schema, body) == result(schema, FULL[api][1])


@pytest.mark.parametrize("api", RULES)
def test_known_members_are_documented(api: str) -> None:
    text = (REPOSITORY / "docs/compatibility.md").read_text()
    rules = RULES[api]
    assert [path for path in (*rules.refused, *rules.ignored, *rules.effective) if f"`{path}`" not in text] == []


@pytest.mark.parametrize(
    ("changes", "ignored"),
    [
        ({"truncation": "middle"}, ("truncation",)),
        ({"context_management": [{"type": "other"}]}, ("context_management",)),
        ({"service_tier": "flex"}, ("service_tier",)),
        ({"include": ["file_search_call.results"]}, ("include",)),
        ({"include": [dialects.LOGPROBS, "file_search_call.results"]}, ("include",)),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, ("stream_options.include_obfuscation",)),
    ],
)
def test_values_without_effect_are_ignored(changes: dict[str, Any], ignored: tuple[str, ...]) -> None:
    body = {"model": "m", "input": "x", **changes}
    assert member_reader().read(Shape(ResponseCreate), body).ignored == ignored
    assert isinstance(result(ResponseCreate, body), dict)
    with pytest.raises(InvalidRequest) as refused:
        member_reader(refuse_unknown=True).read(Shape(ResponseCreate), body)
    assert refused.value.param == ignored[0]


@pytest.mark.parametrize("api", ["job", "chat", "message", "count_tokens", "response"])
def test_tools_of_other_types_are_ignored_beside_functions(api: str) -> None:
    schema, body = FULL[api]
    functions, others = (
        body["tools"],
        [{"type": "web_search", "user_location": None}, {"type": "custom_2", "name": "p"}],
    )
    reading = member_reader().read(Shape(schema), {**body, "tools": [others[0], *functions, others[1]]})
    assert reading.ignored == ("tools[web_search]", "tools[custom_2]")
    assert reading.body["tools"] == functions
    with pytest.raises(ValidationError):
        read(schema, {**body, "tools": others})
    with pytest.raises(ValidationError):
        read(schema, {**body, "tools": [*functions, *others]}, refuse_unknown=True)
    with pytest.raises(ValidationError):
        read(schema, {**body, "tools": [*functions, {"type": 7}]})


def test_client_data_is_left_unchanged() -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {},
        "required": [],
        "default": None,
        "maximum": 1.0,
        "x-unknown": {},
    }
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "tools": [tool],
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}},
        "chat_template_kwargs": {"a": {}, "b": None, "c": 1.0},
    }
    reading = member_reader().read(Shape(ChatCompletionRequest), body)
    assert reading.body is body, "not even copied"
    parsed = read(ChatCompletionRequest, body)
    assert parsed.tools is not None
    assert parsed.tools[0].function.parameters == schema


@given(some.dictionaries(some.text(max_size=300), some.integers(), max_size=60))
def test_the_header_is_bounded_ascii_and_reversible(unknown: dict[str, int]) -> None:
    # Hypothesis also draws names from the code: those that are refused are not unknown. A prefix makes all unknown.
    unknown = {f"?{name}": value for name, value in unknown.items()}
    paths = member_reader().read(Shape(ResponseCreate), {"model": "m", "input": "x", **unknown}).ignored
    assert len(paths) <= MAX_NAMES
    header = header_value(paths)
    assert len(header) <= MAX_HEADER_BYTES
    assert header.isascii()
    assert header.isprintable()
    if header:
        assert tuple(unquote(name) for name in header.split(", ")) == paths


def test_names_are_encoded() -> None:
    paths = member_reader().read(Shape(ResponseCreate), {"a\r\nb": 1, "é, f": 1}).ignored
    assert header_value(paths) == "a%0D%0Ab, %C3%A9%2C%20f"
    with pytest.raises(InvalidRequest, match="unpaired surrogate"):
        read(ResponseCreate, {"\ud800": 1})


def test_known_names_are_metric_labels_and_others_are_counted_together() -> None:
    metrics = Metrics(Exporter.API, ["m"])
    reader = type(member_reader())(metrics, refuse_unknown=False)
    shape = Shape(ChatCompletionRequest)
    for name in ("store", "x1", "x2"):
        reader.read(shape, {"model": "m", name: True})
    reader.read(shape, {"model": "m", "store": True}, counted=False)

    def count(label: str) -> float:
        (family,) = metrics.ignored_parameters.collect()
        return sum(s.value for s in family.samples if s.name.endswith("_total") and s.labels["parameter"] == label)

    assert (count("store"), count("(other)")) == (1, 2)
