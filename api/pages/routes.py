"""`GET /`: the landing page. `GET /docs`: the API reference in Swagger UI, whose files come from a wheel.

Both work without the internet and behind a path prefix: the pages reference only this server, by relative addresses.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

_FOLDER = Path(__file__).parent
_SERVED = frozenset(("favicon.svg", "swagger-ui.css", "swagger-ui-bundle.js"))


def install(app: FastAPI, *, console: bool) -> None:
    """Add the pages, outside the OpenAPI schema. The application must be created without FastAPI's own docs pages.

    `console`: link to the console.
    """
    # Swagger UI sets style attributes, and its style sheet has its icons in data URLs.
    docs, landing = ((_FOLDER / file).read_text() for file in ("docs.html", "landing.html"))
    if not console:
        landing = re.sub("<!-- console -->.*<!-- /console -->\n", "", landing)
    _add_page(app, "/docs", docs, style="'self' 'unsafe-inline'", img="'self' data:")
    _add_page(app, "/", landing, style="", img="'self'")
    app.mount("/static", _Assets(directory=_FOLDER / "static", packages=[("fastapi_swagger", "resources")]))


def _add_page(app: FastAPI, path: str, html: str, *, style: str, img: str) -> None:
    policy = {
        "default-src": "'none'",
        "script-src": f"'self' {_hashes('script', html)}",
        "style-src": style or _hashes("style", html),
        "img-src": img,
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "Content-Security-Policy": "; ".join(f"{name} {sources}" for name, sources in policy.items()),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    async def page(_: Request) -> HTMLResponse:
        return HTMLResponse(html, headers=headers)

    app.add_route(path, page, include_in_schema=False)


def _hashes(element: str, html: str) -> str:
    """The sources that allow exactly the inline elements of a page."""
    texts = re.findall(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    return " ".join(f"'sha256-{digest}'" for digest in digests)


class _Assets(StaticFiles):
    """Serves the named files only: the wheel's folder is a Python package and holds more."""

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        return super().lookup_path(path) if path in _SERVED else ("", None)
