"""Parses and validates JSON bodies. Rejects objects with too many members and deeply nested values before validation.

Validation reports each unknown member as an error; a body of 4 MB holds 350,000 of them, which takes seconds.
Lists need no limit, because the schemas stop at the first error of a list. Nesting is limited because pydantic cannot
serialize, and thus store, very deep values.

Large bodies are parsed and validated in a thread, in small pieces, so that they do not delay other requests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from itertools import islice
from typing import Annotated, Any, ParamSpec, TypeVar

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.types import Receive, Scope

from api.http.dependencies import get_resource
from api.http.header_parameters import header_parameters
from api.http.members import MemberReader, Shape
from api.http.validation import describe
from shared.domain.errors import InvalidRequest
from shared.runtime import chunked_json
from shared.runtime.offload import INLINE_BYTES, off_loop

P = ParamSpec("P")
T = TypeVar("T")

MAX_MEMBERS = 4096
MAX_DEPTH = 100
MAX_CONTAINERS = 200_000

_STRING_OR_CONTAINER = re.compile(r'"(?:[^"\\]++|\\.)*+"|[{\[]', re.DOTALL)


def loads(body: bytes) -> Any:
    """Parse a JSON value.

    Raises:
        ValueError: the body is not JSON or not UTF-8, or a number has too many digits.
        RecursionError: the parser's nesting limit is exceeded.
        InvalidRequest: there are too many objects and lists, or `check_shape` rejects the value.
    """
    if len(body) > INLINE_BYTES:
        value = loads_large(body.decode(json.detect_encoding(body), "surrogatepass"))
    else:
        value = json.loads(body)
    check_shape(body, value)
    return value


def loads_large(text: str) -> Any:
    """Parse a large JSON text in small pieces; raises as `loads`. The caller checks its shape."""
    _check_containers(text)
    return chunked_json.loads(text)


def _check_containers(text: str) -> None:
    """Reject a body of a million empty objects, which would need 20 times its size in memory."""
    if text.count("{") + text.count("[") <= MAX_CONTAINERS:
        return
    containers = (match for match in _STRING_OR_CONTAINER.finditer(text) if match[0] in ("{", "["))
    if next(islice(containers, MAX_CONTAINERS, None), None) is not None:
        raise InvalidRequest(f"The JSON has more than {MAX_CONTAINERS} objects and lists.")


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
    """A request that parses its body with `loads` and normalizes it (see `api.http.members`).

    A large body is also validated, as FastAPI would do later.
    """

    def __init__(self, scope: Scope, receive: Receive, schema: type[BaseModel], shape: Shape) -> None:
        super().__init__(scope, receive)
        self._schema = schema
        self._shape = shape

    async def json(self) -> Any:
        body = await self.body()
        return await off_loop(len(body), self._parse, body)

    def _parse(self, body: bytes) -> Any:
        reading = get_resource(self, MemberReader).read(self._shape, loads(body))
        self.state.ignored = reading.ignored
        if len(body) <= INLINE_BYTES:
            return reading.body
        try:
            return self._schema.model_validate(reading.body, from_attributes=True)
        except ValidationError as error:
            message, param = describe(error.errors(include_url=False, include_context=True, include_input=False))
            raise InvalidRequest(message, param=param) from None


class JsonRoute(APIRoute):
    """A route whose body, if it has one, is read by `JsonRequest`.

    Its description lists the headers that its dependencies read (`api.http.header_parameters`).
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if parameters := header_parameters(self.dependant):
            described = [parameter.described() for parameter in parameters.values()]
            self.openapi_extra = {**(self.openapi_extra or {}), "parameters": described}

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        schema = self.body_field.field_info.annotation
        assert isinstance(schema, type)
        assert issubclass(schema, BaseModel)
        shape = Shape(schema)

        async def handle_json(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive, schema, shape))

        return handle_json


class BodyWork:
    """Runs functions whose work grows with the request's body, which has `size` bytes."""

    def __init__(self, size: int) -> None:
        self.size = size

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function: inline if the body is small, otherwise in a thread."""
        return await off_loop(self.size, function, *args, **kwargs)


async def body_work(request: Request) -> BodyWork:
    return BodyWork(len(await request.body()))


CurrentBodyWork = Annotated[BodyWork, Depends(body_work)]
