"""What scripts put into a page is never shown alone: whoever opens its address in a browser gets a whole page."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from fastapi.routing import APIRoute

from api.console.pages import PAGES
from tests.e2e.console.test_jobs import submit
from tests.e2e.console.test_protection import sign_in
from tests.support.stack import Stack

UNKNOWN = {"batch_id": "batch_1", "delivery_id": "delivery_1", "what": "request"}
# Those with a stream of events never end.
PATHS = sorted(
    f"{page.path}{route.path}".strip("/")
    for page in PAGES
    for route in page.router.routes
    if isinstance(route, APIRoute) and "GET" in route.methods and not route.path.endswith("/live")
)


@pytest.fixture(scope="module")
def operator(sim_stack: Stack, operator_key: str) -> Iterator[httpx.Client]:
    with sign_in(sim_stack, operator_key) as client:
        client.follow_redirects = True
        yield client


@pytest.fixture(scope="module")
def job_id(sim_stack: Stack, operator_key: str) -> str:
    return submit(sim_stack, operator_key, model="sim")


@pytest.mark.parametrize("path", PATHS)
def test_an_address_is_that_of_a_whole_page(operator: httpx.Client, job_id: str, path: str) -> None:
    response = operator.get(path.format(job_id=job_id, **UNKNOWN))
    assert response.status_code < 500
    if response.headers["content-type"].startswith("text/html"):
        assert response.text.lstrip().lower().startswith("<!doctype html>"), response.text[:200]


@pytest.mark.parametrize(("part", "page"), [("usage/savings?range=7d", "usage"), ("jobs/{job_id}/feedback", "jobs/")])
def test_a_part_leads_to_its_page(operator: httpx.Client, job_id: str, part: str, page: str) -> None:
    path = part.format(job_id=job_id)
    assert page in operator.get(path).url.path
    shown = operator.get(path, headers={"HX-Request": "true"})
    assert (shown.status_code, shown.url.path.endswith(path.partition("?")[0])) == (200, True)
    assert "<!doctype" not in shown.text.lower()
