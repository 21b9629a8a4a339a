"""Adds the token for feedback to the responses of requests that were run as a job."""

from __future__ import annotations

from typing import cast

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.feedback.tokens import HEADER, FeedbackTokens
from api.http.dependencies import Resources


class FeedbackTokenMiddleware:
    """ASGI middleware: adds the header to every response, other than errors, that has a job (`request.state.job_id`).

    It is inside of the authentication, so that whoever gets a token has a key of the job's project.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_token(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                job_id: str | None = scope.get("state", {}).get("job_id")
                if job_id is not None:
                    resources = cast(Resources, cast(FastAPI, scope["app"]).state.resources)
                    if token := resources.get(FeedbackTokens).token_of(job_id):
                        MutableHeaders(scope=message)[HEADER] = token
            await send(message)

        await self._app(scope, receive, send_with_token)
