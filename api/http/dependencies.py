"""FastAPI dependencies shared by all features, and access to the application's resources."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar, cast

from fastapi import Depends, FastAPI, Request

from api.settings import StreamSettings
from shared.config.models.loader import Registry

T = TypeVar("T")


class Resources:
    """The application's long-lived objects, by type."""

    def __init__(self) -> None:
        self._by_type: dict[type[Any], Any] = {}

    def add(self, kind: type[T], resource: T) -> None:
        self._by_type[kind] = resource

    def get(self, kind: type[T]) -> T:
        return cast(T, self._by_type[kind])


def set_resources(app: FastAPI, resources: Resources) -> None:
    """Make resources available to the application's dependencies."""
    app.state.resources = resources


def resource(kind: type[T]) -> Callable[[Request], Coroutine[Any, Any, T]]:
    """Return a FastAPI dependency that provides the application's resource of the given type."""

    # A coroutine function, because FastAPI runs a plain function in a thread for each request.
    async def dependency(request: Request) -> T:
        return get_resource(request, kind)

    return dependency


def get_resource(request: Request, kind: type[T]) -> T:
    """The application's resource of a type."""
    resources: Resources = request.app.state.resources
    return resources.get(kind)


CurrentStreamSettings = Annotated[StreamSettings, Depends(resource(StreamSettings))]
CurrentRegistry = Annotated[Registry, Depends(resource(Registry))]
