"""The pages of the console, in the order of the navigation. A new page is a folder here, and a line in this list."""

from __future__ import annotations

from api.console.batches import routes as batches
from api.console.fleet import routes as fleet
from api.console.jobs import routes as jobs
from api.console.keys import routes as keys
from api.console.limits import routes as limits
from api.console.overview import routes as overview
from api.console.page import Page
from api.console.playground import routes as playground
from api.console.quality import routes as quality
from api.console.requests import routes as requests
from api.console.routing import routes as routing
from api.console.usage import routes as usage

PAGES: tuple[Page, ...] = (
    overview.PAGE,
    jobs.PAGE,
    playground.PAGE,
    batches.PAGE,
    fleet.PAGE,
    requests.PAGE,
    routing.PAGE,
    usage.PAGE,
    quality.PAGE,
    limits.PAGE,
    keys.PAGE,
)
