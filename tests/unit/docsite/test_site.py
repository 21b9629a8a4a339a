"""The documentation's site is built from the pages, and its links lead somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.app import create_app
from api.settings import ApiSettings
from docsite import build as builder
from docsite.build import CONFIGURATION, DOCS, ICON, ROOT_PAGES, SiteError
from docsite.http_api import pages_of
from docsite.links import broken_links
from tests.support.stack import REPOSITORY


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    settings = ApiSettings(
        DATABASE_URL="postgresql://localhost/x",
        REDIS_URL="redis://localhost",
        models=REPOSITORY / "models.simulated.yaml",
    )
    return create_app(settings).openapi()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any]) -> Path:
    """The built site; the build fails if a link is broken."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "api_pages", lambda: pages_of(document))
        builder.build(folder)
    return folder


def test_each_page_is_in_the_navigation(site: Path) -> None:
    text = CONFIGURATION.read_text()
    sources = [str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")]
    sources += [*ROOT_PAGES.values(), *(f"http-api/{path.stem}.md" for path in (site / "http-api").glob("*.html"))]
    assert [name for name in sources if f" {name}\n" not in text] == []


def test_each_operation_is_in_the_reference(site: Path, document: dict[str, Any]) -> None:
    index = (site / "http-api" / "index.html").read_text()
    operations = [f"{method.upper()} {path}" for path, found in document["paths"].items() for method in found]
    assert [name for name in operations if name not in index] == []


def test_pages_have_the_icon_of_the_console(site: Path) -> None:
    page = (site / "start.html").read_text()
    assert re.search(r'<link rel="?icon"? href="?\./images/icon\.svg"?', page)
    assert re.search(r'<img src="?\./images/icon\.svg"?', page)
    assert (site / "images" / "icon.svg").read_bytes() == ICON.read_bytes()


def test_the_search_works_without_a_server(site: Path) -> None:
    index = json.loads((site / "search.json").read_text())
    assert any("lease" in item["text"] for item in index["items"])
    assert (site / "search.js").exists()


def test_a_page_with_a_broken_link_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = yaml.safe_dump({"site_name": "x", "docs_dir": "pages", "site_dir": "site"})
    (tmp_path / "mkdocs.yml").write_text(configuration)
    monkeypatch.setattr(builder, "CONFIGURATION", tmp_path / "mkdocs.yml")

    def collect(pages: Path) -> None:
        pages.mkdir()
        (pages / "index.md").write_text("# Start\n\n[here](missing.md)\n")

    monkeypatch.setattr(builder, "collect", collect)
    with pytest.raises(SiteError, match=r"index\.md:3"):
        builder.build(tmp_path / "built")
    assert not (tmp_path / "built").exists()


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<a href="b.html#there">', None),
        ('<a href="https://example.com/x">', None),
        ('<a href="c.html">', "c.html leads nowhere"),
        ('<a href="b.html#elsewhere">', "b.html#elsewhere leads to no heading"),
        ('<a href="#elsewhere">', "#elsewhere leads to no heading"),
        ('<img src="missing.png">', "missing.png leads nowhere"),
        ('<script src="https://cdn.example.com/x.js"></script>', "loads https://cdn.example.com/x.js"),
        ('<link rel="stylesheet" href="//fonts.example.com/x">', "loads //fonts.example.com/x"),
    ],
)
def test_links(tmp_path: Path, body: str, problem: str | None) -> None:
    (tmp_path / "a.html").write_text(body)
    (tmp_path / "b.html").write_text('<h2 id="there">There</h2>')
    assert broken_links(tmp_path) == ([f"a.html: {problem}"] if problem else [])


def test_a_style_sheet_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "x.css").write_text('@font-face { src: url("https://fonts.example.com/a.woff2") }')
    assert broken_links(tmp_path) == ["x.css: loads https://fonts.example.com/a.woff2"]
