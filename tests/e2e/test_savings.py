"""`GET /v1/savings`."""

from __future__ import annotations

import httpx
import pytest

from tests.e2e.test_projects import bearer, create_key
from tests.support.stack import Stack


async def test_a_project_sees_the_savings_of_its_own_jobs(sim: httpx.AsyncClient, sim_stack: Stack) -> None:
    body = {"model": "sim", "messages": [{"role": "user", "content": "the mill"}], "max_tokens": 5}
    async with bearer(sim_stack, create_key(sim_stack, "saver", "--project", "savings")) as client:
        empty = (await client.get("/v1/savings")).json()
        assert (empty["object"], empty["days"], empty["answered"]["requests"]) == ("savings", 7, 0)
        usage = (await client.post("/v1/chat/completions", json=body)).json()["usage"]
        await sim.post("/v1/chat/completions", json=body)
        report = (await client.get("/v1/savings", params={"days": 1})).json()
    expected = {
        "requests": 1,
        "prompt_tokens": usage["prompt_tokens"],
        "cached_tokens": 0,
        "completion_tokens": usage["completion_tokens"],
    }
    assert report["answered"] == report["generated"] == expected
    assert report["prompt_cache"]["models"][0]["model"] == "sim"
    assert report["response_cache"]["requests"] == report["coalescing"]["requests"] == 0
    assert report["start"] < report["end"]


@pytest.mark.parametrize("days", ["0", "91", "many", "1.5"])
async def test_days_that_are_not_possible(sim: httpx.AsyncClient, days: str) -> None:
    response = await sim.get("/v1/savings", params={"days": days})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "days"
