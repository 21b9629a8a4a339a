"""Links within README and docs lead somewhere, and the index of decisions has all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]


def headings(page: Path) -> Iterator[tuple[int, str]]:
    """The level and the text of each heading, outside of code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for marks, heading in re.findall(r"^(#{1,6}) (.*)$", text, flags=re.MULTILINE):
        yield len(marks), heading


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to headings."""
    found: dict[str, int] = {}
    for _, heading in headings(page):
        slug = anchor(heading)
        count = found[slug] = found.get(slug, -1) + 1
        if count:
            found[f"{slug}-{count}"] = 0
    return set(found)


def anchor(heading: str) -> str:
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.replace("`", "")).strip().lower()
    return "".join(letter for letter in plain if letter.isalnum() or letter in " -_").replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, fragment = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (fragment and target.suffix == ".md" and fragment not in anchors(target)):
            broken.append(link)
    assert not broken


def test_the_index_of_decisions_is_complete() -> None:
    index = (DOCS / "decisions" / "README.md").read_text()
    missing = [
        f"[{heading}]({page.name}#{anchor(heading)})"
        for page in sorted((DOCS / "decisions").glob("*.md"))
        if page.name != "README.md"
        for level, heading in headings(page)
        if level == 2
    ]
    assert [link for link in missing if link not in index] == []
