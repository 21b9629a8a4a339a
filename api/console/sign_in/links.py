"""`POST /v1/console/links`: one-time sign-in links, for programs that open the console in a browser."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from api.console.session_store import LINK_S, link_path
from api.console.sessions import Sessions
from api.http.dependencies import resource
from api.http.openapi import ERRORS
from api.keys.auth import AnyPrincipal

router = APIRouter(tags=["console"])


class ConsoleLink(BaseModel):
    """A one-time sign-in link."""

    object: Literal["console.link"] = "console.link"
    path: str = Field(description="The link, below the address of the API. It works once.")
    expires_in_s: int = Field(description="Seconds for which the link is valid.")


@router.post("/v1/console/links", status_code=201, responses=ERRORS)
async def create_console_link(
    principal: AnyPrincipal, sessions: Annotated[Sessions, Depends(resource(Sessions))], response: Response
) -> ConsoleLink:
    """Create a link that signs in to the console with the rights of this API key, once."""
    response.headers["Cache-Control"] = "no-store"
    return ConsoleLink(path=link_path(await sessions.create_link(principal)), expires_in_s=int(LINK_S))
