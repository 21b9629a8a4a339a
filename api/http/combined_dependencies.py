"""Combines the dependencies of a path operation that need only the request into one.

For each dependency of each request, FastAPI looks for parameters in the path, the query, the headers and the cookies,
and prepares for generators and background tasks: some 10 us each, of which a submit has five. Most of ours take the
request, or others that do. They are listed once per route, and called in the order in which FastAPI would call them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, NamedTuple

from fastapi import Request
from fastapi.dependencies.models import Dependant

# The name of the combined dependency: no parameter of a function has it.
_COMBINED = "combined dependencies"


class _Step(NamedTuple):
    """A dependency to call: the name of its parameter for the request, and the places of its other arguments."""

    call: Callable[..., Any]
    request_name: str | None
    arguments: Sequence[tuple[str, int]]


class _Combined:
    """Several dependencies, which are called one after the other."""

    def __init__(self, dependencies: Sequence[Dependant]) -> None:
        self._steps: list[_Step] = []
        self._places: dict[Any, int] = {}
        self._arguments = self._add_all(dependencies)

    async def solve(self, request: Request) -> dict[str, Any]:
        """Return the arguments for the path operation. Raises what the dependencies raise."""
        found: list[Any] = []
        for call, request_name, arguments in self._steps:
            values = {name: found[place] for name, place in arguments}
            if request_name is not None:
                values[request_name] = request
            found.append(await call(**values))
        return {name: found[place] for name, place in self._arguments}

    def _add_all(self, dependencies: Sequence[Dependant]) -> Sequence[tuple[str, int]]:
        places = [(one.name, self._add(one)) for one in dependencies]
        return [(name, place) for name, place in places if name is not None]

    def _add(self, dependant: Dependant) -> int:
        """Add a dependency after those that it needs, unless it is there. Returns its place."""
        if dependant.use_cache and dependant.cache_key in self._places:
            return self._places[dependant.cache_key]
        arguments = self._add_all(dependant.dependencies)
        assert dependant.call is not None
        self._steps.append(_Step(dependant.call, dependant.request_param_name, arguments))
        return self._places.setdefault(dependant.cache_key, len(self._steps) - 1)


def combined(dependant: Dependant) -> Dependant:
    """The same path operation, with one dependency in place of all that need only the request.

    The OpenAPI description needs the original.
    """
    plain = [one for one in dependant.dependencies if _is_plain(one)]
    endpoint = dependant.call
    if len(plain) < 2 or endpoint is None or not dependant.is_coroutine_callable:
        return dependant
    solver = Dependant(call=_Combined(plain).solve, name=_COMBINED, request_param_name="request", path=dependant.path)

    @wraps(endpoint)
    async def call(**values: Any) -> Any:
        return await endpoint(**values.pop(_COMBINED), **values)

    others = [one for one in dependant.dependencies if not _is_plain(one)]
    return replace(dependant, dependencies=[solver, *others], call=call)


def _is_plain(dependant: Dependant) -> bool:
    """Whether a dependency is a coroutine function of the request and of plain dependencies."""
    parameters = (
        dependant.path_params,
        dependant.query_params,
        dependant.header_params,
        dependant.cookie_params,
        dependant.body_params,
    )
    special = (
        dependant.websocket_param_name,
        dependant.http_connection_param_name,
        dependant.response_param_name,
        dependant.background_tasks_param_name,
        dependant.security_scopes_param_name,
    )
    return (
        dependant.is_coroutine_callable
        and not any(parameters)
        and not any(special)
        and all(_is_plain(needed) for needed in dependant.dependencies)
    )
