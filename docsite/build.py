"""Builds the site: collects the pages, has Zensical render them, and checks the result.

Pages are read on GitHub as well, so they link to files of the repository by relative paths. The site has no such files
outside of `docs/`: those that pages link to are copied into it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from docsite.http_api import api_pages
from docsite.links import broken_links

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
CONFIGURATION = Path(__file__).with_name("mkdocs.yml")
# Pages of the repository's root, by their path in the site.
ROOT_PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
# The console's icon, which mkdocs.yml names.
ICON = REPOSITORY / "api" / "console" / "static" / "icon.svg"
_LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
# The script with which the search works in files that were opened without a server.
_SHIM = "https://unpkg.com/iframe-worker/shim"
_VENDORED = Path(__file__).with_name("vendor") / "iframe-worker.js"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class SiteError(Exception):
    """The site could not be built; the message says why."""


def build(folder: Path) -> list[Path]:
    """Build the site into a folder, whose content is replaced. Returns the paths of its pages."""
    with tempfile.TemporaryDirectory(prefix="headrace-docs-") as name:
        source = Path(name)
        collect(source / "pages")
        shutil.copy(CONFIGURATION, source / "mkdocs.yml")
        _render(source)
        _make_independent(source / "site")
        if problems := broken_links(source / "site"):
            raise SiteError("\n".join(problems))
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source / "site", folder)
    return sorted(folder.rglob("*.html"))


def collect(pages: Path) -> None:
    """Write the sources of all pages into a folder."""
    shutil.copytree(DOCS, pages)
    shutil.copy(ICON, pages / "images")
    for name, target in ROOT_PAGES.items():
        (pages / target).write_text((REPOSITORY / name).read_text())
    origins = {DOCS / path.relative_to(pages): path for path in pages.rglob("*.md")}
    origins |= {REPOSITORY / name: pages / target for name, target in ROOT_PAGES.items()}
    for origin in [*origins]:
        page = origins[origin]
        page.write_text(_with_links_in_the_site(page.read_text(), origin, origins, pages))
    (pages / "http-api").mkdir()
    for name, text in api_pages().items():
        (pages / "http-api" / name).write_text(text)


def _with_links_in_the_site(text: str, origin: Path, origins: dict[Path, Path], pages: Path) -> str:
    """Point the links of a page at pages of the site. Other files of the repository are copied into it."""

    def replace(match: re.Match[str]) -> str:
        path, anchor = match[1], match[2] or ""
        if re.match(r"[a-z]+:", path):
            return match[0]
        target = (origin.parent / path).resolve()
        if target.is_dir() and (target / "README.md").exists():
            target /= "README.md"
        placed = origins.get(target)
        if placed is None and target.is_relative_to(DOCS):
            placed = pages / target.relative_to(DOCS)
        elif placed is None:
            placed = pages / "files" / target.relative_to(REPOSITORY)
            placed.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(target, placed)
        return os.path.relpath(placed, origins[origin].parent) + anchor

    return _LINK.sub(replace, text)


def _render(source: Path) -> None:
    """Run Zensical on the sources, into `site`; each of its warnings is an error."""
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(source / "mkdocs.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        output = _COLOURS.sub("", done.stdout + done.stderr)
        raise SiteError(output.partition("Traceback")[0].strip() or output)


def _make_independent(site: Path) -> None:
    """Let the pages work without another server, and without a server at all, where a folder has no start page."""
    shim = site / "assets" / _VENDORED.name
    shutil.copy(_VENDORED, shim)
    for page in site.rglob("*.html"):
        text = page.read_text().replace(_SHIM, os.path.relpath(shim, page.parent))
        page.write_text(text.replace('href="./.."', 'href="../index.html"'))
