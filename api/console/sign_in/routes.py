"""`/console/sign-in` and `/console/sign-out`."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from api.console.actions import redirect
from api.console.cookies import clear_session, session_token, set_session
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
# A page with a longer address is not returned to: the form would be too large.
_MAX_NEXT = 2000

public = APIRouter()
router = APIRouter()


@public.get("/sign-in")
async def sign_in_page(
    request: Request,
    sessions: CurrentSessions,
    token: Annotated[str, Query(max_length=MAX_KEY)] = "",
    next_page: Annotated[str, Query(alias="next")] = "",
) -> Response:
    """The form for a key, or for a one-time link the one that a script submits at once.

    A link is not used by GET, which mail scanners and chat previews send too. A browser that has a session asks first:
    the link of somebody else would let its owner read what is done from then on.
    """
    is_signed_in = bool(token) and await _has_session(request, sessions)
    shown = next_page if len(next_page) <= _MAX_NEXT else ""
    return _sign_in_page(request, token=token, next_page=shown, is_signed_in=is_signed_in)


@public.post("/sign-in")
async def sign_in(request: Request, sessions: CurrentSessions) -> Response:
    """Start a session by a key or by the token of a link."""
    form = await _small_form(request)
    key, token, next_page = form.get("key", "").strip(), form.get("token", ""), form.get("next", "")
    try:
        started = await (sessions.sign_in_by_link(token) if token else sessions.sign_in(key))
    except Unauthorized as error:
        message = str(error) if token or key else "Enter an API key."
        return _sign_in_page(request, 401, next_page=next_page, error=message)
    response = redirect(request, next_page if _is_page(next_page) else "")
    set_session(response, request.headers, started)
    return response


@router.post("/sign-out")
async def sign_out(request: Request, sessions: CurrentSessions, viewer: CurrentViewer) -> Response:
    """End the session."""
    await sessions.sign_out(viewer.session_token, request.state.open_request)
    response = redirect(request, "sign-in")
    clear_session(response, request.headers)
    return response


def _sign_in_page(
    request: Request,
    status: int = 200,
    *,
    token: str = "",
    next_page: str = "",
    error: str | None = None,
    is_signed_in: bool = False,
) -> Response:
    values = {"token": token, "next_page": next_page, "error": error, "is_signed_in": is_signed_in}
    return page_response(request.scope, "sign_in/sign_in.html", status, **values)


async def _has_session(request: Request, sessions: Sessions) -> bool:
    try:
        await sessions.principal(session_token(request.headers) or "")
    except Unauthorized:
        return False
    return True


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
