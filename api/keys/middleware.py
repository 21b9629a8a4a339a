"""Authenticates requests before anything reads their bodies."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, cast

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.dependencies import Resources
from api.http.errors import render
from api.keys.auth import Authenticator
from api.keys.open_requests import OpenRequests
from shared.domain.errors import Unauthorized
from shared.telemetry.metrics import Metrics

# Every path below it requires a key.
PREFIX = "/v1/"


class AuthenticationMiddleware:
    """ASGI middleware: responds with 401 to a request without a valid key, without reading its body.

    The key is a bearer token, `x-api-key`, which takes precedence under `api_key_prefix`, or `api-key`, which Azure's
    clients send. An OPTIONS request, such as a browser's preflight, has no key. The routes require the principal that
    this middleware has found.

    A POST request to one of the `open_paths` may also come without a key. It is marked as anonymous, and its route
    decides what it may do.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, api_key_prefix: str, open_paths: Collection[str] = ()) -> None:
        self._app = app
        self._open_paths = open_paths
        self._metrics = metrics
        self._api_key_prefix = api_key_prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX) or scope["method"] == "OPTIONS":
            await self._app(scope, receive, send)
            return
        resources = cast(Resources, cast(FastAPI, scope["app"]).state.resources)
        key = self._key(scope)
        if not key and scope["method"] == "POST" and scope["path"] in self._open_paths:
            scope.setdefault("state", {})["is_anonymous"] = True
            await self._app(scope, receive, send)
            return
        try:
            principal = await resources.get(Authenticator).principal(key)
        except Exception as error:
            if isinstance(error, Unauthorized):
                self._metrics.auth_failures.labels("invalid" if key else "missing").inc()
            await render(error)(scope, receive, send)
            return
        requests = resources.get(OpenRequests)
        state: dict[str, Any] = scope.setdefault("state", {})
        disconnect: Callable[[], None] | None = state.get("disconnect")  # see `api.http.server`
        request = state["open_request"] = requests.enter(principal, disconnect)
        try:
            await self._app(scope, receive, send)
        finally:
            requests.leave(request)

    def _key(self, scope: Scope) -> str:
        """The key that a request has sent; empty if it has sent none."""
        bearer = api_key = azure_key = b""
        for name, value in scope["headers"]:
            if name == b"authorization" and not bearer:
                scheme, *credentials = value.split(None, 1) or [b""]
                bearer = credentials[0].strip() if credentials and scheme.lower() == b"bearer" else b""
            elif name == b"x-api-key":
                api_key = api_key or value.strip()
            elif name == b"api-key":
                azure_key = azure_key or value.strip()
        first, second = (api_key, bearer) if scope["path"].startswith(self._api_key_prefix) else (bearer, api_key)
        return (first or second or azure_key).decode("latin-1")
