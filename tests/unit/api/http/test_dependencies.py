"""FastAPI runs plain functions in threads, which costs a request more than most of them do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from inspect import isasyncgenfunction, iscoroutinefunction
from pathlib import Path
from typing import Any

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from api.app import create_app
from api.settings import ApiSettings


def calls(dependant: Dependant) -> Iterator[Any]:
    if dependant.call is not None:
        yield dependant.call
    for dependency in dependant.dependencies:
        yield from calls(dependency)


def api_routes(routes: Iterable[Any]) -> Iterator[APIRoute]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        else:
            yield from api_routes(getattr(route, "routes", ()))


def is_async(call: Any) -> bool:
    return any(test(found) for test in (iscoroutinefunction, isasyncgenfunction) for found in (call, call.__call__))


def test_no_endpoint_and_no_dependency_runs_in_a_thread(tmp_path: Path) -> None:
    models = tmp_path / "models.yaml"
    models.write_text("models: [{name: m, engine: simulated}]")
    app = create_app(ApiSettings(database_url="postgresql://unused", redis_url="redis://unused", models=models))
    found = {(route.path, call) for route in api_routes(app.routes) for call in calls(route.dependant)}
    assert len(found) > 100
    assert [(path, call.__qualname__) for path, call in found if not is_async(call)] == []
