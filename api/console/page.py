"""What a page tells the rest of the console about itself."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter

from api.keys.principal import Scope


@dataclass(frozen=True, slots=True)
class Page:
    """A page, or a group of pages with one entry in the navigation.

    `path` is its path below `/console`, with which those of its router start; empty for the start page. `key`: `g` and
    this key lead to it. `scope`: without it, the key of a session gets the error page 403. `search`: the page finds
    what is typed into the search field of all pages, and gets it as `q`; the text says what can be found.
    """

    path: str
    title: str
    router: APIRouter
    key: str
    group: str = ""
    scope: Scope | None = None
    search: str | None = None
