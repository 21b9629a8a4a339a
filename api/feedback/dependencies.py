"""FastAPI dependencies of feedback."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from api.feedback.service import FeedbackService
from api.http.dependencies import resource
from api.keys.auth import bearer
from api.keys.open_requests import OpenRequest
from api.keys.principal import Principal, Scope

CurrentFeedback = Annotated[FeedbackService, Depends(resource(FeedbackService))]


async def principal_if_any(request: Request, _: Annotated[None, Depends(bearer)]) -> Principal | None:
    """Return the principal of a request; None if it has no key, which the middleware lets pass to this path only.

    Raises:
        Forbidden: the key does not have the `inference` scope.
    """
    open_request: OpenRequest | None = getattr(request.state, "open_request", None)
    if open_request is None:
        return None
    open_request.principal.require(Scope.INFERENCE)
    return open_request.principal


PrincipalIfAny = Annotated[Principal | None, Depends(principal_if_any)]
