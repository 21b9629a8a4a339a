"""`/v1/feedback` and `/v1/quality`: thumbs with keys and, from a browser, with an answer's token."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.e2e.test_jobs import wait_for_end
from tests.e2e.test_projects import bearer, create_key
from tests.support.stack import Stack

TOKEN = "x-headrace-feedback-token"
ORIGIN = "https://shop.example.com"
CHAT: dict[str, Any] = {
    "model": "sim",
    "messages": [{"role": "user", "content": "How deep is the mill race?"}],
    "max_tokens": 4,
    "user": "ann",
}


@pytest.fixture(scope="module")
def keys(sim_stack: Stack) -> tuple[str, str]:
    return create_key(sim_stack, "shop", "--project", "shop"), create_key(sim_stack, "thief", "--project", "thieves")


@pytest.fixture
async def shop(sim_stack: Stack, keys: tuple[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with bearer(sim_stack, keys[0]) as client:
        yield client


@pytest.fixture
async def thief(sim_stack: Stack, keys: tuple[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with bearer(sim_stack, keys[1]) as client:
        yield client


@pytest.fixture
async def browser(sim_stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """A page of another origin, which has no key."""
    async with httpx.AsyncClient(base_url=sim_stack.url, headers={"Origin": ORIGIN}) as client:
        yield client


async def answer(client: httpx.AsyncClient) -> tuple[str, str]:
    """The job of an answer, and its token."""
    response = await client.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 200, response.text
    return response.headers["x-headrace-job-id"], response.headers[TOKEN]


async def listed(client: httpx.AsyncClient, **params: str) -> list[dict[str, Any]]:
    response = await client.get("/v1/feedback", params=params)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["data"]
    return found


async def test_thumbs_can_be_given_and_changed(shop: httpx.AsyncClient) -> None:
    job, _ = await answer(shop)
    first = await shop.post(f"/v1/jobs/{job}/feedback", json={"rating": "up"})
    assert (first.status_code, first.json()["value"], first.json()["user"]) == (200, "up", "ann")
    nothing = await shop.post("/v1/feedback", json={"value": "up"})
    assert (nothing.status_code, nothing.json()["error"]["param"]) == (400, "job_id")
    body = {"job_id": job, "value": "down", "comment": "Wrong.", "tags": ["wrong"]}
    second = await shop.post("/v1/feedback", json=body)
    assert second.status_code == 200
    assert second.json()["id"] == first.json()["id"]
    assert (await shop.post("/v1/feedback", json=body)).json() == second.json(), "repeated"
    (only,) = await listed(shop, job_id=job)
    assert only == second.json()
    assert (only["metric"], only["model"], only["source"], only["comment"]) == ("rating", "sim", "key", "Wrong.")
    other = await shop.post(f"/v1/jobs/{job}/feedback", json={"rating": "up", "user": "bob"})
    assert other.status_code == 200
    deleted = await shop.delete(f"/v1/feedback/{only['id']}")
    assert deleted.json() == {"id": only["id"], "object": "feedback.deleted", "deleted": True}
    assert [one["user"] for one in await listed(shop, job_id=job)] == ["bob"]
    assert (await shop.delete(f"/v1/feedback/{only['id']}")).status_code == 404


async def test_responses_conversations_and_deleted_jobs(shop: httpx.AsyncClient) -> None:
    response = await shop.post("/v1/responses", json={"model": "sim", "input": "x", "max_output_tokens": 3})
    job = response.headers["x-headrace-job-id"]
    given = await shop.post("/v1/feedback", json={"response_id": response.json()["id"], "metric": "m", "value": 0.5})
    assert (given.status_code, given.json()["job_id"], given.json()["value"]) == (200, job, 0.5)
    given = await shop.post("/v1/feedback", json={"conversation": "t-1", "metric": "solved", "value": True})
    assert (given.status_code, given.json()["conversation"], given.json()["model"]) == (200, "t-1", None)
    job, _ = await answer(shop)
    assert (await shop.delete(f"/v1/jobs/{job}")).status_code == 200
    assert (await shop.post(f"/v1/jobs/{job}/feedback", json={"rating": "up"})).status_code == 200


async def test_an_answer_of_any_api_is_named_by_its_own_id(shop: httpx.AsyncClient) -> None:
    """Clients have no other one, least of all those that read a stream."""
    messages = [{"role": "user", "content": "x"}]
    chat = {"model": "sim", "messages": messages, "max_tokens": 3}
    whole = await shop.post("/v1/chat/completions", json=chat)
    streamed = await shop.post("/v1/chat/completions", json={**chat, "stream": True})
    first_chunk = json.loads(streamed.text.split("\n", 1)[0].removeprefix("data: "))
    completion = await shop.post("/v1/completions", json={"model": "sim", "prompt": "x", "max_tokens": 3})
    message = await shop.post("/v1/messages", json=chat)
    for answer_id, response in (
        (whole.json()["id"], whole),
        (first_chunk["id"], streamed),
        (completion.json()["id"], completion),
        (message.json()["id"], message),
    ):
        given = await shop.post("/v1/feedback", json={"response_id": answer_id, "value": "up"})
        assert given.status_code == 200, answer_id
        assert given.json()["job_id"] == response.headers["x-headrace-job-id"]


async def test_jobs_of_other_projects_are_like_none(shop: httpx.AsyncClient, thief: httpx.AsyncClient) -> None:
    job, _ = await answer(shop)
    nobody = job[:-4] + "0000"
    for path, body in (
        ("/v1/jobs/{}/feedback", {"rating": "up"}),
        ("/v1/feedback", {"job_id": "{}", "value": "up"}),
        ("/v1/feedback", {"response_id": "{}", "value": "up"}),
    ):
        replies = []
        for one in (job, nobody):
            named = one.replace("job_", "resp_") if "response_id" in body else one
            sent = {name: value.format(named) for name, value in body.items()}
            reply = await thief.post(path.format(named), json=sent)
            replies.append((reply.status_code, reply.text.replace(named, "ID")))
        assert replies[0] == replies[1]
        assert replies[0][0] == 404
    given = (await shop.post(f"/v1/jobs/{job}/feedback", json={"rating": "up"})).json()
    assert await listed(thief) == []
    assert (await thief.delete(f"/v1/feedback/{given['id']}")).status_code == 404
    assert (await thief.get("/v1/feedback", params={"project": "shop"})).status_code == 403
    assert len(await listed(shop, job_id=job)) == 1


async def test_an_operator_lists_all(sim_stack: Stack, shop: httpx.AsyncClient) -> None:
    job, _ = await answer(shop)
    await shop.post(f"/v1/jobs/{job}/feedback", json={"rating": "up"})
    key = create_key(sim_stack, "boss", "--project", "bosses", "--scope", "admin", "--scope", "inference")
    async with bearer(sim_stack, key) as boss:
        assert await listed(boss) == []
        for project in ("shop", "*"):
            assert [one["job_id"] for one in await listed(boss, project=project, job_id=job)] == [job]
        assert (await boss.get("/v1/feedback", params={"project": "nobody"})).status_code == 400


async def test_a_browser_gives_feedback_without_a_key(shop: httpx.AsyncClient, browser: httpx.AsyncClient) -> None:
    job, token = await answer(shop)
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    allowed = await browser.options("/v1/feedback", headers=preflight)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "*")
    given = await browser.post("/v1/feedback", json={"token": token, "value": "up"})
    assert given.status_code == 200, given.text
    assert given.headers["access-control-allow-origin"] == "*"
    assert (given.json()["job_id"], given.json()["user"], given.json()["source"]) == (job, "ann", "token")
    again = await browser.post("/v1/feedback", json={"token": token, "job_id": job, "value": "down"})
    assert (again.status_code, again.json()["id"], again.json()["value"]) == (200, given.json()["id"], "down")
    assert (await listed(shop, job_id=job))[0]["value"] == "down"


async def test_tokens_are_for_one_answer(shop: httpx.AsyncClient, browser: httpx.AsyncClient) -> None:
    (job, token), (other, _) = await answer(shop), await answer(shop)
    _, expires, signature = token.split(".")
    for body in (
        {"value": "up"},
        {"value": "up", "job_id": job},
        {"value": "up", "token": "x"},
        {"value": "up", "token": token, "job_id": other},
        {"value": "up", "token": token, "response_id": other.replace("job_", "resp_")},
        {"value": "up", "token": f"{other}.{expires}.{signature}"},
        {"value": "up", "token": f"{job}.{int(expires) + 1}.{signature}"},
    ):
        refused = await browser.post("/v1/feedback", json=body)
        assert refused.status_code == 401, refused.text
        assert refused.headers["access-control-allow-origin"] == "*", "a page can read the error"
    for member in ("user", "conversation"):
        refused = await browser.post("/v1/feedback", json={"value": "up", "token": token, member: "x"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, member)
    both = await shop.post("/v1/feedback", json={"value": "up", "token": token, "job_id": job})
    assert (both.status_code, both.json()["error"]["param"]) == (400, "token")
    assert await listed(shop, job_id=job) == await listed(shop, job_id=other) == []


async def test_a_token_opens_nothing_else(shop: httpx.AsyncClient, browser: httpx.AsyncClient) -> None:
    job, token = await answer(shop)
    for method, path in (
        ("GET", "/v1/feedback"), ("DELETE", "/v1/feedback/feedback_1"), ("POST", f"/v1/jobs/{job}/feedback"),
        ("GET", f"/v1/jobs/{job}"), ("GET", "/v1/quality"),
    ):  # fmt: skip
        json = {"token": token, "value": "up", "rating": "up"} if method == "POST" else None
        response = await browser.request(method, path, json=json)
        assert response.status_code in (401, 404), (path, response.text)
    by_header = await browser.get(f"/v1/jobs/{job}", headers={"Authorization": f"Bearer {token}"})
    assert by_header.status_code == 401


async def test_bodies_without_a_key_are_small(browser: httpx.AsyncClient) -> None:
    large = b'{"value": "' + b"x" * 70_000
    assert (await browser.post("/v1/feedback", content=large)).status_code == 413
    bomb = gzip.compress(b" " * 10_000_000)
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    assert (await browser.post("/v1/feedback", content=bomb, headers=headers)).status_code == 413
    assert (await browser.post("/v1/feedback", content=b"{", headers=headers)).status_code == 400


async def test_every_answer_has_a_token(shop: httpx.AsyncClient) -> None:
    async with shop.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as streamed:
        assert streamed.headers[TOKEN].startswith(streamed.headers["x-headrace-job-id"] + ".")
        await streamed.aread()
    submitted = await shop.post("/v1/jobs", json={"model": "sim", "prompt": "x", "max_tokens": 2})
    job = submitted.json()["id"]
    assert submitted.headers[TOKEN].startswith(f"{job}.")
    await wait_for_end(shop, job)
    assert (await shop.get(f"/v1/jobs/{job}")).headers[TOKEN].startswith(f"{job}.")
    message = {"model": "sim", "max_tokens": 2, "messages": [{"role": "user", "content": "x"}]}
    assert TOKEN in (await shop.post("/v1/messages", json=message)).headers
    assert TOKEN not in (await shop.get("/v1/models")).headers
    assert TOKEN not in (await shop.post("/v1/chat/completions", json={"model": "nobody"})).headers


async def test_the_report_on_quality(sim_stack: Stack) -> None:
    key = create_key(sim_stack, "rated", "--project", "rated")
    async with bearer(sim_stack, key) as rated:
        for rating in ("up", "up", "down"):
            job, _ = await answer(rated)
            await rated.post(f"/v1/jobs/{job}/feedback", json={"rating": rating})
        report = (await rated.get("/v1/quality", params={"group_by": ["model", "day"]})).json()
        (item,) = report["data"]
        assert report["group_by"] == ["day", "model"]
        assert (item["model"], item["up"]["count"], item["up"]["n"]) == ("sim", 2, 3)
        assert item["up"]["low"] < item["up"]["rate"] < item["up"]["high"]
        assert 0.5 < report["refusal_classifier"]["precision"]["rate"] < 1
        (whole,) = (await rated.get("/v1/quality", params={"group_by": "project"})).json()["data"]
        assert whole["project"] == "rated"
        assert "model" not in whole
        assert (await rated.get("/v1/quality", params={"project": "shop"})).status_code == 403
        for params in ({"start": "2026-01-02", "end": "2026-01-01"}, {"group_by": "user"}, {"page": "x"}):
            assert (await rated.get("/v1/quality", params=params)).status_code == 400
        (mine,) = (await rated.get("/v1/quality", params={"group_by": "project", "project": "rated"})).json()["data"]
        assert mine == whole
