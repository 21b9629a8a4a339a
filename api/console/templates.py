"""Renders the templates of the pages. All values are escaped; there is no way to write markup by accident."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse
from starlette.types import Scope

from api.console import filters
from api.console.assets import ASSETS
from api.console.navigation import address, browser_path, groups, here_of, is_current, root_of
from api.console.page import Page
from api.console.security_headers import SECURITY_HEADERS
from api.console.table_roles import TableRoles
from api.console.viewer import viewer_of
from shared.domain.version import VERSION

environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    auto_reload=False,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[TableRoles],
)
environment.filters.update(filters.FILTERS)
environment.globals.update(address=address, version=VERSION, assets=f"static/{ASSETS.version}/")


def render(template: str, values: Mapping[str, Any]) -> Markup:
    """Render a template, which may be a part of a page, without a request: for parts that many viewers get."""
    return Markup(environment.get_template(template).render(values))  # noqa: S704  # autoescaped


def page_response(scope: Scope, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A page as the response to a request. Its template extends `layout.html`, or `bare.html` before the sign-in."""
    viewer = viewer_of(scope)
    pages: Sequence[Page] = scope["app"].state.console_pages
    shown = groups(pages, viewer) if viewer is not None else []
    path = browser_path(scope)
    context = {
        "status": status,
        "root": root_of(path),
        # Fragments are resolved against the layout's root, so links within a page need its own path.
        "here": here_of(path),
        "viewer": viewer,
        "groups": shown,
        "searched": [page for group in shown for page in group.pages if page.search is not None],
        "current": next((page for page in pages if is_current(page, path)), None),
        **values,
    }
    return HTMLResponse(render(template, context), status, SECURITY_HEADERS)


def fragment_response(template: str, **values: Any) -> HTMLResponse:
    """A part of a page, for a script that replaces it."""
    return HTMLResponse(render(template, values), headers=SECURITY_HEADERS)
