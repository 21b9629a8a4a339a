"""The navigation: the pages that a viewer may open, by group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from starlette.datastructures import Headers
from starlette.types import Scope

from api.console.page import Page
from api.console.viewer import Viewer

PREFIX = "/console"


@dataclass(frozen=True, slots=True)
class Group:
    """Entries of the navigation under one heading, which may be empty."""

    title: str
    pages: tuple[Page, ...]


def groups(pages: Sequence[Page], viewer: Viewer) -> list[Group]:
    """The pages for which the viewer's key has the scope, grouped in the order of their first page."""
    visible = [page for page in pages if page.scope is None or viewer.principal.may(page.scope)]
    titles = dict.fromkeys(page.group for page in visible)
    return [Group(title, tuple(page for page in visible if page.group == title)) for title in titles]


def is_current(page: Page, path: str) -> bool:
    """Whether a request's path belongs to a page."""
    here = path.removeprefix(PREFIX).strip("/")
    return here == page.path or (page.path != "" and here.startswith(f"{page.path}/"))


def root_of(path: str) -> str:
    """The relative address of the console's root, from the path of a request as the browser sees it.

    Relative, because a proxy may have removed a prefix that this server does not know.
    """
    below = path.partition(PREFIX)[2]
    return "../" * (below.count("/") - 1) or "./" if below else f"{PREFIX.strip('/')}/"


def here_of(path: str) -> str:
    """The address of a page, relative to the console's root; with `./`, because a path may begin like a scheme."""
    return f"./{path.removeprefix(PREFIX).strip('/')}"


def address(path: str, **conditions: str | None) -> str:
    """The address of a page with those of the conditions that are set, relative to the console's root."""
    query = urlencode({name: value for name, value in conditions.items() if value})
    return f"{path}?{query}" if query else path


def asks_for_part(scope: Scope) -> bool:
    """Whether a script of a page has sent the request, and puts the response into the page.

    Others, such as the address of a part that is opened in a browser, get a whole page.
    """
    return "hx-request" in Headers(scope=scope)


def browser_path(scope: Scope) -> str:
    """The path of a request as the browser resolves addresses against it: with slashes that the server ignores."""
    raw: bytes | None = scope.get("raw_path")
    return raw.decode("latin-1").partition("?")[0] if raw else str(scope["path"])
