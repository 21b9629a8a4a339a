"""`/console/sign-in` and `/console/sign-out`."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from api.console.actions import redirect
from api.console.cookies import clear_session, set_session
from api.console.sessions import Sessions
from api.console.templates import page_response
from api.console.viewer import CurrentViewer
from api.http.dependencies import resource
from api.keys.auth import MAX_KEY
from shared.domain.errors import InvalidRequest, TooLarge, Unauthorized

CurrentSessions = Annotated[Sessions, Depends(resource(Sessions))]
# A page of the console: no scheme, no host, and nothing above the console's root.
_NEXT = re.compile(r"([a-z0-9][a-zA-Z0-9/_.-]*)?(\?[^#\\\s]*)?")
_MAX_FORM, _MAX_FIELDS = 8192, 8

public = APIRouter()
router = APIRouter()


@public.get("/sign-in")
async def sign_in_page(
    request: Request,
    token: Annotated[str, Query(max_length=MAX_KEY)] = "",
    next_page: Annotated[str, Query(alias="next", max_length=2000)] = "",
) -> Response:
    """The form for a key, or for a one-time link the one that a script submits at once.

    A link is not used by GET, which mail scanners and chat previews send too.
    """
    return page_response(request.scope, "sign_in/sign_in.html", token=token, next_page=next_page, error=None)


@public.post("/sign-in")
async def sign_in(request: Request, sessions: CurrentSessions) -> Response:
    """Start a session by a key or by the token of a link."""
    form = await _small_form(request)
    key, token, next_page = form.get("key", "").strip(), form.get("token", ""), form.get("next", "")
    try:
        started = await (sessions.sign_in_by_link(token) if token else sessions.sign_in(key))
    except Unauthorized as error:
        message = str(error) if token or key else "Enter an API key."
        return page_response(request.scope, "sign_in/sign_in.html", 401, token="", next_page=next_page, error=message)
    response = redirect(request, next_page if _is_page(next_page) else "")
    set_session(response, request.headers, started)
    return response


@router.post("/sign-out")
async def sign_out(request: Request, sessions: CurrentSessions, viewer: CurrentViewer) -> Response:
    """End the session."""
    await sessions.sign_out(viewer.session_token)
    response = redirect(request, "sign-in")
    clear_session(response, request.headers)
    return response


async def _small_form(request: Request) -> dict[str, str]:
    """The fields of a form. Whoever sends it is not known yet, so it may not be large."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_FORM:
            raise TooLarge(f"The form is larger than {_MAX_FORM} bytes.")
    try:
        return dict(parse_qsl(body.decode(), max_num_fields=_MAX_FIELDS))
    except ValueError:
        raise InvalidRequest("The form cannot be read.") from None


def _is_page(address: str) -> bool:
    return _NEXT.fullmatch(address) is not None and ".." not in urlsplit(address).path
