"""The pages of the console, in the order of the navigation. A new page is a folder here, and a line in this list."""

from __future__ import annotations

from api.console.batches import routes as batches
from api.console.overview import routes as overview
from api.console.page import Page
from api.console.playground import routes as playground

PAGES: tuple[Page, ...] = (overview.PAGE, playground.PAGE, batches.PAGE)
