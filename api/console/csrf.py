"""Protection against requests that other sites make a signed-in browser send."""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import urlsplit

from fastapi import Request
from starlette.datastructures import Headers

from api.console.viewer import CurrentViewer
from shared.domain.errors import Forbidden

SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
FIELD, HEADER = "csrf_token", "x-csrf-token"
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


def csrf_token(session_token: str) -> str:
    """The token that forms and scripts of a session's pages send; it reveals nothing of the session's own."""
    return hmac.new(session_token.encode(), b"csrf", hashlib.sha256).hexdigest()


def is_same_origin(headers: Headers) -> bool:
    """Whether a request was made by a page of this server, or by no page at all, as far as the browser says.

    Browsers send `Sec-Fetch-Site` over HTTPS and to the loopback interface. Over plain HTTP, `Origin` has to name the
    host that the request was sent to; proxies that change `Host` have to pass on the original as `X-Forwarded-Host`.
    """
    if (site := headers.get("sec-fetch-site")) is not None:
        return site in ("same-origin", "none")
    if (origin := headers.get("origin")) is None:
        return True  # no browser: browsers send it with every unsafe request
    host = urlsplit(origin).netloc
    return bool(host) and host in (headers.get("x-forwarded-host"), headers.get("host"))


async def require_csrf_token(request: Request, viewer: CurrentViewer) -> None:
    """Refuse an unsafe request without the token of its session, in a header or in a field of its form.

    Raises:
        Forbidden: the token is missing or of another session.
    """
    if request.method in SAFE_METHODS:
        return
    sent: object = request.headers.get(HEADER)
    if sent is None and request.headers.get("content-type", "").startswith(_FORMS):
        sent = (await request.form()).get(FIELD)
    if not isinstance(sent, str) or not hmac.compare_digest(sent.encode(), viewer.csrf_token.encode()):
        raise Forbidden("This page has expired. Go back, reload it, and try again.", code="csrf_token_invalid")
