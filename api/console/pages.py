"""The pages of the console, in the order of the navigation. A new page is a folder here, and a line in this list."""

from __future__ import annotations

from api.console.jobs import routes as jobs
from api.console.overview import routes as overview
from api.console.page import Page

PAGES: tuple[Page, ...] = (
    overview.PAGE,
    jobs.PAGE,
)
