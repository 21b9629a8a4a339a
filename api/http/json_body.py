"""Parses JSON bodies. Rejects objects with too many members and deeply nested values before validation.

Validation reports each unknown member as an error; a body of 4 MB holds 350,000 of them, which takes seconds.
Lists need no limit, because the schemas stop at the first error of a list. Nesting is limited because pydantic cannot
serialize, and thus store, very deep values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.types import Receive, Scope

from api.http.dependencies import get_resource
from api.http.members import MemberReader, Shape
from shared.domain.errors import InvalidRequest

MAX_MEMBERS = 4096
MAX_DEPTH = 100


def loads(body: bytes) -> Any:
    """Parse a JSON value.

    Raises:
        ValueError: the body is not JSON or not UTF-8, or a number has too many digits.
        RecursionError: the parser's nesting limit is exceeded.
        InvalidRequest: `check_shape` rejects the value.
    """
    value = json.loads(body)
    check_shape(body, value)
    return value


def check_shape(text: bytes, value: Any) -> None:
    """Raise `InvalidRequest` if a JSON value is nested too deeply or an object in it has too many members."""
    # Fast path: most bodies have too few colons and brackets to exceed a limit.
    if text.count(b":") <= MAX_MEMBERS and text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inside: list[Any] = []
        for item in level:
            if isinstance(item, list):
                inside += item
            elif isinstance(item, dict):
                if len(item) > MAX_MEMBERS:
                    raise InvalidRequest(f"An object has {len(item)} members; the maximum is {MAX_MEMBERS}.")
                inside += item.values()
        level = [item for item in inside if isinstance(item, dict | list)]
        if not level:
            return
    raise InvalidRequest(f"The JSON is nested more than {MAX_DEPTH} levels deep.")


class JsonRequest(Request):
    """A request that parses its body with `loads` and normalizes it (see `api.http.members`)."""

    def __init__(self, scope: Scope, receive: Receive, shape: Shape) -> None:
        super().__init__(scope, receive)
        self._shape = shape

    async def json(self) -> Any:
        reading = get_resource(self, MemberReader).read(self._shape, loads(await self.body()))
        self.state.ignored = reading.ignored
        return reading.body


class JsonRoute(APIRoute):
    """A route whose body, if it has one, is read by `JsonRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        schema = self.body_field.field_info.annotation
        assert isinstance(schema, type)
        assert issubclass(schema, BaseModel)
        shape = Shape(schema)

        async def handle_json(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive, shape))

        return handle_json
