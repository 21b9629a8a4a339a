"""Adds the console to the application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Depends, FastAPI, Request
from starlette.responses import Response

from api.console.assets import ASSETS
from api.console.csrf import require_csrf_token
from api.console.navigation import PREFIX
from api.console.page import Page
from api.console.pages import PAGES
from api.console.sign_in import links
from api.console.sign_in import routes as sign_in
from api.console.viewer import CurrentViewer, Viewer
from shared.domain.errors import NotFound


def install_console(app: FastAPI) -> None:
    """Add the pages, outside the OpenAPI schema, and the call that creates sign-in links.

    The application must also have `api.console.middleware.ConsoleMiddleware` and `api.console.errors.CONVENTIONS`.
    """
    app.state.console_pages = PAGES
    app.add_api_route(
        f"{PREFIX}/static/{{version}}/{{name:path}}", _asset, response_class=Response, include_in_schema=False
    )
    app.include_router(links.router)
    app.include_router(sign_in.public, prefix=PREFIX, include_in_schema=False)
    csrf = Depends(require_csrf_token)
    app.include_router(sign_in.router, prefix=PREFIX, include_in_schema=False, dependencies=[csrf])
    for page in PAGES:
        prefix = f"{PREFIX}/{page.path}".rstrip("/")
        needs = [csrf, Depends(_requires(page))]
        app.include_router(page.router, prefix=prefix, include_in_schema=False, dependencies=needs)
    app.add_api_route(f"{PREFIX}/{{path:path}}", _no_page, response_class=Response, include_in_schema=False)


async def _no_page() -> Response:
    raise NotFound("There is no page at this address.")


async def _asset(request: Request, version: str, name: str) -> Response:
    return ASSETS.response(request, version, name)


def _requires(page: Page) -> Callable[[Viewer], Awaitable[None]]:
    async def require_scope(viewer: CurrentViewer) -> None:
        if page.scope is not None:
            viewer.principal.require(page.scope)

    return require_scope
