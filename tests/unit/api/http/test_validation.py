"""Hostile bodies are cheap: lists stop at their first error, and objects with too many members are rejected."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from api.anthropic import routes as anthropic
from api.anthropic.schemas import MessagesRequest
from api.batches import routes as batches
from api.http.json_body import MAX_DEPTH, MAX_MEMBERS, JsonRoute, loads
from api.jobs import routes as jobs
from api.jobs.schemas import JobCreate
from api.openai import routes as openai
from api.openai.schemas import ChatCompletionRequest, CompletionRequest
from api.responses import routes as responses
from shared.domain.errors import InvalidRequest

ROUTES = [
    route
    for module in (jobs, openai, responses, anthropic, batches)
    for route in module.router.routes
    if isinstance(route, APIRoute)
]
BODIES: list[type[BaseModel]] = [JobCreate, ChatCompletionRequest, CompletionRequest, MessagesRequest]
MANY = 2_000


def schemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield a core schema and all schemas inside it."""
    if isinstance(schema, dict):
        if isinstance(schema.get("type"), str):
            yield schema
        for name, part in schema.items():
            if name != "json_schema_input_schema":  # for documentation only
                yield from schemas(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from schemas(part)


@pytest.mark.parametrize(
    "body",
    dict.fromkeys(field.field_info.annotation for route in ROUTES for field in [route.body_field] if field is not None),
    ids=lambda body: body.__name__,
)
def test_every_list_in_a_request_stops_at_its_first_error(body: type[BaseModel]) -> None:
    lists = [
        schema
        for schema in schemas(body.__pydantic_core_schema__)
        if schema["type"] == "list" and schema.get("items_schema", {}).get("type", "any") != "any"
    ]
    assert [schema for schema in lists if not schema.get("fail_fast")] == []


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
@pytest.mark.parametrize("field", ["messages", "prompt", "stop", "stop_sequences", "tools", "system", "n"])
@pytest.mark.parametrize("item", [{}, 1, None, [{}], {"role": "user", "content": [{}] * MANY}])
def test_a_list_of_invalid_items_has_few_errors(body: type[BaseModel], field: str, item: object) -> None:
    """The exception is a prompt of thousands of token ids, which is valid."""
    errors = 0
    try:
        body.model_validate({"model": "m", field: [item] * MANY})
    except ValidationError as invalid:
        errors = invalid.error_count()
    assert errors < 20
    assert errors or (field, item) == ("prompt", 1)


@pytest.mark.parametrize("route", [route for route in ROUTES if route.body_field], ids=lambda route: route.path)
def test_every_route_with_a_body_is_a_json_route(route: APIRoute) -> None:
    assert isinstance(route, JsonRoute)


@pytest.mark.parametrize("wrapped", ["%s", '{"a": [%s]}', '[[{"b": %s}]]'])
def test_an_object_with_too_many_members_is_rejected(wrapped: str) -> None:
    def text(members: int) -> bytes:
        return (wrapped % json.dumps({str(number): 0 for number in range(members)})).encode()

    assert loads(text(MAX_MEMBERS)) == json.loads(text(MAX_MEMBERS))
    with pytest.raises(InvalidRequest, match=f"{MAX_MEMBERS + 1} members; the maximum is {MAX_MEMBERS}"):
        loads(text(MAX_MEMBERS + 1))


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a": ', "}"), ('[{"a": ', "}]")])
def test_deeply_nested_json_is_rejected(opening: str, closing: str) -> None:
    def text(levels: int) -> bytes:
        times = levels // len(closing)
        return (opening * times + "1" + closing * times).encode()

    assert loads(text(MAX_DEPTH)) == json.loads(text(MAX_DEPTH))
    with pytest.raises(InvalidRequest, match=f"more than {MAX_DEPTH} levels"):
        loads(text(MAX_DEPTH + 2))
