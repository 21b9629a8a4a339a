"""The principal of an operator's request, and what all these operations respond with."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request

from api.http.errors import ErrorResponse
from api.http.openapi import ERRORS
from api.keys.auth import bearer
from api.keys.open_requests import OpenRequest
from api.keys.principal import Principal, Scope
from shared.domain.errors import Unauthorized

FORBIDDEN: dict[int | str, dict[str, Any]] = {
    403: {"model": ErrorResponse, "description": "The API key has no `admin` scope."}
}
ADMIN_ERRORS = {**ERRORS, **FORBIDDEN}


async def admin_principal(request: Request, _: Annotated[None, Depends(bearer)]) -> Principal:
    """Return the principal of a request if its key has the `admin` scope.

    Raises:
        Unauthorized: the request was not authenticated.
        Forbidden: the key does not have the scope.
    """
    open_request: OpenRequest | None = getattr(request.state, "open_request", None)
    if open_request is None:
        raise Unauthorized
    open_request.principal.require(Scope.ADMIN)
    return open_request.principal


AdminPrincipal = Annotated[Principal, Depends(admin_principal)]
