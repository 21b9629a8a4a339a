"""`python -m tests.support.screenshots [FOLDER] [PAGE ...]`: pictures of the console's pages, for the docs.

Each page in the light and the dark theme and at phone width, of an installation with made-up data.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from PIL import Image
from playwright.async_api import Browser

from shared.domain.master_key import generate_master_key
from tests.support.console import DESKTOP, PHONE, create_key, open_browser, visit
from tests.support.demo_accounts import fill_accounts, logged_job, write_rubrics
from tests.support.demo_batches import ANSWERS, INVALID, RUNNING
from tests.support.demo_data import MODELS, fill
from tests.support.demo_operations import ROUTES, fill_operations, refresh
from tests.support.demo_servers import demo_servers
from tests.support.stack import REPOSITORY, Stack, write_models

# Paths of the pages by the name of the picture. `{story}` is the id of the job with a story, `{logged}` that of one
# whose body is in the log.
PAGES = {
    "overview": "",
    "jobs": "jobs?range=1h",
    "jobs-filtered": "jobs?status=failed&range=24h",
    "jobs-all": "jobs/all?status=failed&range=24h&action=replay",
    "job": "jobs/{story}",
    "job-request": "jobs/{story}?tab=request",
    "job-events": "jobs/{story}?tab=events",
    "playground": "playground?" + "&".join(f"job={job}" for job in ANSWERS),
    "batches": "batches",
    "batch": f"batches/{RUNNING}",
    "batch-errors": f"batches/{INVALID}",
    "models": "models",
    "model": "models/model?name=llama-3-70b",
    "drain": "models/drain?worker=llama-3-70b-1",
    "keys": "keys",
    "change-key": "keys/change?key=key_1",
    "new-key": "keys/new?project=team-docs",
    "projects": "keys/projects",
    "routing": "routing?range=1h",
    "usage": "usage",
    "usage-project": "usage?project=team-docs",
    "limits": "limits",
    "requests": "requests",
    "request": "requests/{logged}",
    "quality": "quality",
    "labels": "quality/labels?rubric=helpful",
    "webhooks": "webhooks",
    "deliveries": "webhooks/deliveries",
    "delivery": "webhooks/deliveries/delivery_1",
    "new-webhook": "webhooks/new",
    "sign-in": "sign-in",
    "not-found": "no-such-page",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": DESKTOP},
    "dark": {"color_scheme": "dark", "viewport": DESKTOP},
    "phone": {"color_scheme": "light", "viewport": PHONE},
}
# Charts and fonts are drawn in the frames after they were loaded.
_SETTLED = "new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))"


@contextmanager
def demo_stack() -> Iterator[tuple[Stack, str]]:
    """An API on a database with made-up data, and the id of the job with a story. No worker runs."""
    with demo_servers() as (url, redis_url, folder):
        story = asyncio.run(fill(url, redis_url))
        asyncio.run(fill_operations(url))
        rubrics = write_rubrics(folder)
        asyncio.run(fill_accounts(url, rubrics))
        stack = Stack(url, redis_url, write_models(folder / "models.yaml", MODELS, ROUTES), folder)
        stack.environment |= {"HEADRACE_RUBRICS": str(rubrics), "HEADRACE_LOG_KEY": generate_master_key()}
        try:
            stack.start_api()
            yield stack, story
        finally:
            stack.stop()


async def take(stack: Stack, pages: dict[str, str], folder: Path) -> None:
    """Take the pictures."""
    key = create_key(stack, "ann", "admin", "inference", project="default")
    async with open_browser() as browser:
        for variant, options in VARIANTS.items():
            for name, path in pages.items():
                await _picture(browser, stack, key, path, options, folder / f"{name}-{variant}.png")


async def _picture(browser: Browser, stack: Stack, key: str, path: str, options: dict[str, Any], file: Path) -> None:
    async with visit(browser, stack.url, **options) as window:
        window.complaints.expect_status(404)
        if path != "sign-in":
            await window.sign_in(key)
        await refresh(stack.environment["DATABASE_URL"])
        await window.open(path)
        await window.page.wait_for_load_state("load")
        if await window.page.locator("[data-live]").count():
            await window.page.wait_for_selector('[data-state="live"]')
            await window.page.evaluate(_SETTLED)
        await window.page.wait_for_load_state("networkidle") if "playground" in path else None
        # A window as high as the page: a sidebar has the height of the window.
        height = await window.page.evaluate("document.documentElement.scrollHeight")
        await window.page.set_viewport_size({"width": options["viewport"]["width"], "height": height})
        await window.page.evaluate(_SETTLED)
        write_small(await window.page.screenshot(), file)
        print(file, flush=True)


def write_small(png: bytes, file: Path) -> None:
    """Write a picture with its 256 most frequent colours, which takes a third of the space and looks the same.

    Pillow's own palettes have averages of colours, which tint large areas.
    """
    with Image.open(io.BytesIO(png)) as opened:
        picture = opened.convert("RGB")
    found = cast("list[tuple[int, tuple[int, int, int]]]", picture.getcolors(picture.width * picture.height))
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for _, colour in sorted(found, reverse=True)[:256] for part in colour])
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.screenshots", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=REPOSITORY / "docs" / "images" / "console")
    parser.add_argument("page", nargs="*", metavar="PAGE", help="the names of the pages (default: all)")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with demo_stack() as (stack, story):
        wanted = arguments.page or PAGES
        logged = asyncio.run(logged_job(stack.environment["DATABASE_URL"]))
        pages = {name: path.format(story=story, logged=logged) for name, path in PAGES.items() if name in wanted}
        asyncio.run(take(stack, pages, arguments.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
