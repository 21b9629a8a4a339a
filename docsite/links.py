"""Checks the links of a built site."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Attributes whose addresses a browser loads by itself, by element.
_LOADED = {"img": "src", "script": "src", "source": "src", "iframe": "src", "link": "href"}
# What a `link` element may name without loading it.
_NOT_LOADED = {"canonical", "prev", "next", "alternate", "edit"}


class _Page(HTMLParser):
    """The ids and the addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.ids.update(attributes[name] for name in ("id", "name") if name in attributes)
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        loaded = attributes.get(_LOADED.get(tag, ""))
        if loaded and attributes.get("rel", "") not in _NOT_LOADED:
            self.loaded.append(loaded)


def broken_links(site: Path) -> list[str]:
    """What is wrong: links and anchors that lead nowhere, and addresses of other servers that a page would load."""
    pages = {path: _Page(path.read_text()) for path in site.rglob("*.html")}
    problems = []
    for path, page in sorted(pages.items()):
        if path.name == "404.html":
            continue  # its addresses are absolute, because it is shown at any path
        name = path.relative_to(site)
        problems += [f"{name}: loads {address}" for address in page.loaded if urlsplit(address).netloc]
        for address in [*page.links, *page.loaded]:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                problems.append(f"{name}: {address} leads nowhere")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                problems.append(f"{name}: {address} leads to no heading")
    for sheet in sorted(site.rglob("*.css")):
        loaded = re.findall(r"(?:url\(|@import )[\"']?((?:https?:)?//[^\"')]+)", sheet.read_text())
        problems += [f"{sheet.relative_to(site)}: loads {address}" for address in loaded]
    return problems
