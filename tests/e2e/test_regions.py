"""Two regions, each with its own database, Redis and worker: each redirects to the home region of a job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.test_jobs import submit, wait_for_end
from tests.support.database import drop_database
from tests.support.ports import free_port
from tests.support.stack import KEY, Stack

MODELS: list[dict[str, object]] = [{"name": "sim", "engine": "simulated", "options": {"ttft_ms": 5, "itl_ms": 20}}]
HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def regions(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Stack]]:
    ports = {code: free_port() for code in ("eu", "us")}
    urls = ",".join(f"{code}=http://127.0.0.1:{port}" for code, port in ports.items())
    stacks = {}
    try:
        for code, port in ports.items():
            settings: dict[str, Any] = {"HEADRACE_REGION": code, "HEADRACE_REGIONS": urls, "HEADRACE_PORT": port}
            stack = make_stack(servers, tmp_path_factory, code, MODELS, **settings)
            stacks[code] = stack
            stack.port, stack.url = port, f"http://127.0.0.1:{port}"
            stack.start_api()
            stack.start_worker("sim")
        yield stacks
    finally:
        for code, stack in stacks.items():
            stack.stop()
            drop_database(servers.postgres_url, f"stack_{code}")


async def test_any_region_redirects_to_the_home_of_a_job(regions: dict[str, Stack]) -> None:
    async with regions["eu"].client() as home, regions["us"].client() as other:
        job = await submit(home, max_tokens=3)
        assert job["id"].endswith("_eu")
        done = await wait_for_end(home, job["id"])

        url = f"/v1/jobs/{job['id']}/stream"
        redirect = await other.get(url, params={"starting_after": 1})
        assert redirect.status_code == 307
        assert redirect.headers["location"] == f"{regions['eu'].url}{url}?starting_after=1"
        followed = (await home.get(redirect.headers["location"])).text
        assert followed.count("job.delta") > 0
        assert followed == (await home.get(url, params={"starting_after": 1})).text

        redirect = await other.get(f"/v1/jobs/{job['id']}")
        assert redirect.next_request is not None
        redirect.next_request.headers.update(HEADERS)  # httpx drops them when redirected to another origin
        assert (await other.send(redirect.next_request)).json() == done


async def test_a_job_is_cancelled_through_another_region(regions: dict[str, Stack]) -> None:
    async with regions["us"].client() as home, regions["eu"].client() as other:
        job = await submit(home, max_tokens=4000)
        redirect = await other.post(f"/v1/jobs/{job['id']}/cancel")
        assert redirect.status_code == 307
        assert (await home.post(redirect.headers["location"])).status_code == 200
        assert (await wait_for_end(home, job["id"]))["status"] == "cancelled"


async def test_files_redirect_to_their_home(regions: dict[str, Stack]) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "sim", "prompt": "x"}}
    form = {"file": ("a.jsonl", json.dumps(line).encode()), "purpose": (None, b"batch")}
    async with regions["eu"].client() as home, regions["us"].client() as other:
        file = (await home.post("/v1/files", files=form)).json()["id"]
        assert file.endswith("_eu")
        assert (await other.get(f"/v1/files/{file}/content")).headers["location"].startswith(regions["eu"].url)


@pytest.mark.parametrize("ending", ["", "_us", "_mars"])
async def test_an_id_without_another_known_region_is_looked_up_locally(regions: dict[str, Stack], ending: str) -> None:
    async with regions["us"].client() as client:
        answer = await client.get(f"/v1/jobs/job_{'0' * 32}{ending}")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "job_not_found"
