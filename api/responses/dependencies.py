"""FastAPI dependencies of responses."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from api.responses.service import ResponseService


async def response_service(request: Request) -> ResponseService:
    responses: ResponseService = request.app.state.resources.responses
    return responses


Responses = Annotated[ResponseService, Depends(response_service)]
