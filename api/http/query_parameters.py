"""Refuses query parameters that a route does not have.

A route with conditions must not ignore a misspelt one: it would be about more than its client has asked for, and some
of these routes cancel or delete.
"""

from __future__ import annotations

from fastapi import Request
from fastapi.dependencies.utils import get_flat_dependant

from shared.domain.errors import InvalidRequest


async def check_names(request: Request) -> None:
    """Check that the route has all query parameters of a request. A dependency of routes.

    Raises:
        InvalidRequest: the route has no parameter of this name.
    """
    names = {field.alias for field in get_flat_dependant(request.scope["route"].dependant).query_params}
    for name in request.query_params:
        if name not in names:
            raise InvalidRequest(
                f"{name[:64]}: there is no such query parameter; there are: {', '.join(sorted(names))}", param=name[:64]
            )
