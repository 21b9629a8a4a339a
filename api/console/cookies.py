"""The cookie that holds a session's token, and those that hand a new secret to the page that shows it."""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import Response

from api.console.session_store import SESSION_S

# For how long a new secret waits for the page that shows it: the redirect to it follows at once.
_SECRET_S = 60
_PORT = re.compile(r":([0-9]{1,5})$")


def session_token(headers: Headers) -> str | None:
    """The token that a request's cookie holds."""
    return cookie_parser(headers.get("cookie", "")).get(_name(headers))


def set_session(response: Response, headers: Headers, token: str) -> None:
    """Add the cookie to the response of a sign-in.

    It has no path: the browser derives it from the address of the sign-in page, which ends in `/console/sign-in` behind
    any path prefix. `lax`: it is sent when a link elsewhere leads to a page, and never with a form or a script's
    request from another site.
    """
    response.set_cookie(
        _name(headers),
        token,
        max_age=int(SESSION_S),
        path=None,
        secure=_is_https(headers),
        httponly=True,
        samesite="lax",
    )


def clear_session(response: Response, headers: Headers) -> None:
    """Remove the cookie."""
    response.set_cookie(
        _name(headers), "", max_age=0, path=None, secure=_is_https(headers), httponly=True, samesite="lax"
    )


def hand_over_secret(response: Response, headers: Headers, item_id: str, secret: str) -> None:
    """Add the secret of a new key, or of an endpoint of webhooks, to the redirect to the page that shows it.

    The page is another request, so that reloading it creates no second key, and any API process may answer it. The
    secret travels as it would in the page itself, and is stored nowhere: scripts cannot read the cookie, only requests
    below the page's folder, such as `keys`, send it, and the page removes it.
    """
    _set_secret(response, headers, item_id, secret, _SECRET_S)


def take_secret(headers: Headers, item_id: str) -> str | None:
    """A new secret; None if it was shown before, or too long ago."""
    return cookie_parser(headers.get("cookie", "")).get(_secret_name(headers, item_id)) or None


def remove_secret(response: Response, headers: Headers, item_id: str) -> None:
    """Remove the secret from the browser: the response shows it."""
    _set_secret(response, headers, item_id, "", 0)


def _set_secret(response: Response, headers: Headers, item_id: str, secret: str, max_age: int) -> None:
    response.set_cookie(
        _secret_name(headers, item_id),
        secret,
        max_age=max_age,
        path=None,
        secure=_is_https(headers),
        httponly=True,
        samesite="strict",
    )


def _secret_name(headers: Headers, item_id: str) -> str:
    return f"{_name(headers)}_{item_id}"


def _name(headers: Headers) -> str:
    """The cookie's name. Cookies are shared by all ports of a host, such as those of forwarded clusters."""
    port = _PORT.search(headers.get("host", ""))
    return f"headrace_session_{port[1]}" if port else "headrace_session"


def _is_https(headers: Headers) -> bool:
    """Whether the browser uses HTTPS. A proxy in between does not say so reliably; the browser's `Origin` does."""
    if origin := headers.get("origin"):
        return origin.startswith("https://")
    return headers.get("x-forwarded-proto") == "https"
