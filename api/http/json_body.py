"""Reads JSON bodies. An object with very many members, or deep nesting, is refused before it is looked at.

Each unknown member is an error of its own, and a body of 4 MB holds 350,000: seconds of work to describe them all.
Lists need no such limit, since the schemas stop at a list's first error. What is nested more deeply than pydantic can
write could be read, and not be stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from shared.domain.errors import InvalidRequest

MAX_MEMBERS = 4096
MAX_DEPTH = 100


def loads(body: bytes) -> Any:
    """A JSON value.

    Raises:
        ValueError: it is no JSON, or no UTF-8, or has a number of too many digits.
        RecursionError: it is nested far too deeply.
        InvalidRequest: as `check_shape`.
    """
    value = json.loads(body)
    check_shape(body, value)
    return value


def check_shape(text: bytes, value: Any) -> None:
    """Raise `InvalidRequest` where a JSON value is nested too deeply, or an object in it has too many members."""
    # Most texts are too short of colons and brackets to need a look at the value.
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
                    raise InvalidRequest(f"An object has {len(item)} members; {MAX_MEMBERS} are allowed.")
                inside += item.values()
        level = [item for item in inside if isinstance(item, dict | list)]
        if not level:
            return
    raise InvalidRequest(f"It is nested more than {MAX_DEPTH} levels deep.")


class JsonRequest(Request):
    """A request whose JSON is read so."""

    async def json(self) -> Any:
        return loads(await self.body())


class JsonRoute(APIRoute):
    """A route whose JSON body is read so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return handle_json
