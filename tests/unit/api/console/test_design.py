"""The rules that all pages keep: the size of what they load, readable colours, and nothing that the CSP forbids."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from api import console
from api.console.assets import ASSETS, FOLDER
from api.console.pages import PAGES

TEMPLATES = sorted(Path(console.__path__[0]).rglob("*.html"))
MAX_BYTES = 100_000
STYLES = (FOLDER / "console.css").read_text()
COLORS = ("blue", "teal", "orange", "green", "amber", "red", "violet", "gray")


def test_scripts_and_styles_are_small() -> None:
    assert sum(len(asset.compressed) for asset in ASSETS.files.values()) <= MAX_BYTES


def test_each_page_has_a_key_of_its_own() -> None:
    keys = [page.key for page in PAGES]
    assert sorted(set(keys)) == sorted(keys)


def test_rows_that_the_keyboard_moves_along_are_in_a_list() -> None:
    """The script looks for rows in such lists only. Rows of a live list have a template of their own."""
    texts = {template.name: template.read_text() for template in TEMPLATES}
    missing = {name for name, text in texts.items() if re.search(r"data-row\b", text) and "data-rows" not in text}
    assert missing == {"row.html"}


def test_vendored_files_have_their_version_and_licence() -> None:
    for file in (FOLDER / "vendor").iterdir():
        if file.suffix in (".js", ".css"):
            name, version = re.fullmatch(r"([A-Za-z]+)-([0-9.]+)\.[a-z.]+", file.name).groups()  # type: ignore[union-attr]
            assert version
            assert (FOLDER / "vendor" / f"{name}.LICENSE.txt").is_file()


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: str(path.relative_to(path.parents[1])))
def test_templates_have_nothing_that_the_policy_forbids(template: Path) -> None:
    text = re.sub(r"\{#.*?#\}", "", template.read_text(), flags=re.DOTALL)
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:|\|\s*safe|autoescape", text)
    assert not re.search(r"<script(?![^>]*\ssrc=)", text), "inline scripts"
    assert not re.search(r"hx-(on|vals|vars)[:=-]", text), "htmx would have to evaluate it"
    assert not re.search(r"""(?:href|src|action|hx-get|hx-post)=["'](?:/|https?:)""", text), "addresses are relative"
    assert not re.search(r"""href=["']#""", text), "it is resolved against the base, not this page"


def palettes() -> dict[str, dict[str, str]]:
    """The tokens of the light and the dark theme."""
    light, dark = re.findall(r":root \{(.*?)\n\s*\}", STYLES, re.DOTALL)[:2]
    found = {
        name: dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{3,6});", block))
        for name, block in (("light", light), ("dark", dark))
    }
    assert found["light"].keys() == found["dark"].keys()
    return found


def luminance(color: str) -> float:
    digits = color[1:] if len(color) == 7 else "".join(digit * 2 for digit in color[1:])
    channels = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_are_readable(theme: str) -> None:
    """WCAG AA: 4.5 for text."""
    tokens = palettes()[theme]
    pairs = [(text, ground) for text in ("ink", "soft", "faint") for ground in ("ground", "panel")]
    pairs += [(color, ground) for color in COLORS for ground in ("panel", f"{color}-ground")]
    pairs += [("panel", "blue"), ("soft", "rest"), ("blue", "ground")]
    poor = {f"{text} on {ground}": round(contrast(tokens[text], tokens[ground]), 2) for text, ground in pairs}
    assert {pair: ratio for pair, ratio in poor.items() if ratio < 4.5} == {}
