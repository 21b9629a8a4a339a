"""`POST /v1/jobs/{id}/replay`: a job that has ended is submitted again, as a new job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import FAIL
from tests.support.console import create_key
from tests.support.stack import Stack

WAIT = {"Prefer": "wait=20"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def owner(sim_stack: Stack) -> dict[str, str]:
    """The headers of a member of a project."""
    return bearer(create_key(sim_stack, "replay-owner", "inference"))


async def submit(sim: httpx.AsyncClient, headers: Mapping[str, str], **body: Any) -> dict[str, Any]:
    response = await sim.post("/v1/jobs", json={"model": "sim", "max_tokens": 3, **body}, headers={**WAIT, **headers})
    assert response.status_code in (200, 202), response.text
    job: dict[str, Any] = response.json()
    return job


async def replay(sim: httpx.AsyncClient, headers: Mapping[str, str], job_id: str) -> httpx.Response:
    return await sim.post(f"/v1/jobs/{job_id}/replay", headers=headers)


async def test_a_replay_is_a_new_job_with_the_same_request(sim: httpx.AsyncClient, owner: dict[str, str]) -> None:
    old = await submit(sim, owner, prompt=FAIL, user="ann", metadata={"team": "a"}, priority=9)
    assert old["status"] == "failed"
    response = await replay(sim, owner, old["id"])
    new = response.json()
    assert (response.status_code, response.headers["location"]) == (202, f"/v1/jobs/{new['id']}")
    assert new["id"] != old["id"]
    assert new["metadata"] == {"team": "a", "replay_of": old["id"]}
    assert (new["model"], new["user"], new["priority"]) == ("sim", "ann", 9)
    ended = (await sim.get(f"/v1/jobs/{old['id']}", headers=owner)).json()
    assert (ended["status"], ended["metadata"]) == ("failed", {"team": "a"})


async def test_a_retry_of_a_replay_is_the_same_job(sim: httpx.AsyncClient, owner: dict[str, str]) -> None:
    old = await submit(sim, owner, prompt="x")
    headers = {**owner, "Idempotency-Key": "replay once"}
    first, again = [await replay(sim, headers, old["id"]) for _ in range(2)]
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["idempotent-replayed"] == "true"
    other = await submit(sim, owner, prompt="y")
    assert (await replay(sim, headers, other["id"])).status_code == 422


async def test_only_a_job_that_has_ended_is_replayed(sim: httpx.AsyncClient, owner: dict[str, str]) -> None:
    open_job = await submit(sim, {**owner, "Prefer": ""}, model="orphan", prompt="x")
    refused = await replay(sim, owner, open_job["id"])
    assert (refused.status_code, "queued" in refused.json()["error"]["message"]) == (409, True)
    deleted = await submit(sim, owner, prompt="x")
    assert (await sim.delete(f"/v1/jobs/{deleted['id']}", headers=owner)).status_code == 200
    assert (await replay(sim, owner, deleted["id"])).status_code == 404


async def test_who_may_replay(sim: httpx.AsyncClient, sim_stack: Stack, owner: dict[str, str]) -> None:
    """The project, and keys with both scopes; the new job is the project's."""
    old = await submit(sim, owner, prompt="x")
    stranger = bearer(create_key(sim_stack, "replay-stranger", "inference"))
    assert (await replay(sim, stranger, old["id"])).status_code == 404
    auditor = bearer(create_key(sim_stack, "replay-auditor", "admin"))
    assert (await replay(sim, auditor, old["id"])).status_code == 403
    operator = bearer(create_key(sim_stack, "replay-operator", "inference", "admin"))
    new = (await replay(sim, operator, old["id"])).json()
    assert (await sim.get(f"/v1/jobs/{new['id']}", headers=owner)).json()["metadata"] == {"replay_of": old["id"]}
    assert (await sim.get(f"/v1/jobs/{new['id']}", headers=operator)).status_code == 404
