"""`/console/v1/...`: the API's calls for the scripts of pages, with the rights of their session.

They are the API's own routes, so that a page can do what its key can do over the API, with the same errors.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI, Header, Request

from api.batches import routes as batches
from api.console.csrf import HEADER, SAFE_METHODS, require_csrf_token
from api.console.navigation import PREFIX
from api.files import routes as files
from api.http.conventions import Conventions
from api.jobs import routes as jobs
from shared.domain.errors import Forbidden

# Scripts read errors in the form of the API, with the parameter that an error is about.
CONVENTIONS = Conventions(f"{PREFIX}/v1", None)
FILES_PATH = f"{PREFIX}{files.PATH}"


async def require_header(request: Request, token: Annotated[str | None, Header(alias=HEADER)] = None) -> None:
    """Refuse an unsafe request without the header that has the token of its session.

    The token is not looked for in forms, because the API's routes read theirs as a stream.

    Raises:
        Forbidden: the header is missing.
    """
    if token is None and request.method not in SAFE_METHODS:
        raise Forbidden("This request was not made by a page of the console.", code="csrf_token_invalid")


def install(app: FastAPI) -> None:
    """Add the calls, outside the OpenAPI schema."""
    protection = [Depends(require_header), Depends(require_csrf_token)]
    for router in (jobs.router, files.router, batches.router):
        app.include_router(router, prefix=PREFIX, include_in_schema=False, dependencies=protection)
