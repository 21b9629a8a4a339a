"""`python -m tests.support.diagrams`: draw `docs/diagrams/*.mmd` (Mermaid) as SVG files in `docs/images/diagrams`.

The pages show pictures, so that neither the site nor its build needs Mermaid. Each picture names the digest of its
source, by which `tests/unit/docsite` finds pictures that are out of date.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path

from tests.support.client_programs import npm_packages
from tests.support.console import open_browser
from tests.support.stack import REPOSITORY

SOURCES = REPOSITORY / "docs" / "diagrams"
PICTURES = REPOSITORY / "docs" / "images" / "diagrams"
VERSION = "12.3.0"
# Legible on light and dark pages: the picture brings its background.
_DRAW = """async (source) => {
  mermaid.initialize({
    startOnLoad: false, deterministicIds: true, htmlLabels: false, fontFamily: "system-ui, sans-serif",
    flowchart: {htmlLabels: false, wrappingWidth: 320}, theme: "base",
    themeVariables: {
      primaryColor: "#eaf1fe", primaryBorderColor: "#2257d6", primaryTextColor: "#111827", lineColor: "#475569",
      edgeLabelBackground: "#ffffff", labelBackgroundColor: "#ffffff", clusterBkg: "#f7f9fc", clusterBorder: "#cbd5e1",
      noteBkgColor: "#fde8e5", noteBorderColor: "#b3261e", noteTextColor: "#7a1712",
      secondaryColor: "#ffffff", tertiaryColor: "#f7f9fc",
    },
    themeCSS: ".edgeLabel rect, .labelBkg, .edgeLabel .background { opacity: 1 !important; fill: #ffffff !important; }",
  });
  return (await mermaid.render("diagram", source)).svg;
}"""


def digest(source: Path) -> str:
    """What identifies the content of a source."""
    return hashlib.sha256(source.read_bytes()).hexdigest()[:16]


def picture_of(source: Path) -> Path:
    """The path of the picture of a source."""
    return PICTURES / f"{source.stem}.svg"


async def draw() -> None:
    """Draw all sources."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    script = npm_packages("mermaid", f"mermaid@{VERSION}") / "node_modules" / "mermaid" / "dist" / "mermaid.min.js"
    async with open_browser() as browser:
        page = await browser.new_page()
        await page.add_script_tag(path=script)
        for source in sorted(SOURCES.glob("*.mmd")):
            svg = await page.evaluate(_DRAW, source.read_text())
            assert isinstance(svg, str)
            background = 'style="background-color: white; '
            svg = svg.replace('style="', background, 1).replace("<svg ", f'<svg data-source="{digest(source)}" ', 1)
            picture_of(source).write_text(svg + "\n")
            print(picture_of(source), flush=True)


def main() -> int:
    asyncio.run(draw())
    return 0


if __name__ == "__main__":
    sys.exit(main())
