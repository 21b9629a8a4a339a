"""Webhooks over HTTP, with the dispatcher of a running API: endpoints, webhooks of requests, rotation, replay."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conftest import FAIL
from tests.e2e.test_projects import bearer, create_key
from tests.support.stack import Stack
from tests.support.waiting import eventually
from tests.support.webhooks import Received, Receiver, receiving, status

PATH = "/v1/webhooks"
MESSAGES = [{"role": "user", "content": "x"}]
# The simulated engine generates as much as it may, so that jobs end as `incomplete`.
JOB: dict[str, Any] = {"model": "sim", "prompt": "x", "max_tokens": 2}
REQUESTS: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/jobs", JOB, "job.incomplete"),
    ("/v1/completions", JOB, "job.incomplete"),
    ("/v1/chat/completions", {"model": "sim", "messages": MESSAGES, "max_tokens": 2}, "job.incomplete"),
    ("/v1/messages", {"model": "sim", "messages": MESSAGES, "max_tokens": 2}, "job.incomplete"),
    ("/v1/responses", {"model": "sim", "input": "x", "max_output_tokens": 16}, "response.incomplete"),
]
REFUSED = [
    ("ftp://example.com/", "must begin with https://"),
    ("not a url", "must not contain spaces"),
    ("https://user:password@example.com/", "must not contain credentials"),
    ("http://10.0.0.1/", "must not name an address that is not public"),
    ("http://169.254.169.254/latest/meta-data", "must not name an address that is not public"),
    ("http://0x7f000001/", "must name a host"),
]


@pytest.fixture(scope="module")
def key(sim_stack: Stack) -> str:
    return create_key(sim_stack, "hooked", "--project", "hooked")


@pytest.fixture(scope="module")
def other_key(sim_stack: Stack) -> str:
    return create_key(sim_stack, "unhooked", "--project", "unhooked")


@pytest.fixture
async def client(sim_stack: Stack, key: str) -> AsyncIterator[httpx.AsyncClient]:
    async with bearer(sim_stack, key) as client:
        yield client


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest.fixture
async def endpoints(client: httpx.AsyncClient, receiver: Receiver) -> AsyncIterator[Any]:
    """Creates endpoints at the receiver, which are deleted after the test."""
    created: list[str] = []

    async def create(*events: str, **more: Any) -> dict[str, Any]:
        response = await client.post(f"{PATH}/endpoints", json={"url": receiver.url, "events": list(events), **more})
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        created.append(found["id"])
        return found

    yield create
    for endpoint_id in created:
        await client.delete(f"{PATH}/endpoints/{endpoint_id}")


@pytest.fixture(scope="module")
def openai_client() -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="not used") as client:
        yield client


@pytest.fixture
async def secret(client: httpx.AsyncClient) -> str:
    """The secret of the project."""
    return str((await client.get(f"{PATH}/secret")).json()["secret"])


def unwrap(client: openai.OpenAI, request: Received, secret: str) -> Any:
    return client.webhooks.unwrap(request.body, request.headers, secret=secret)


async def ended(client: httpx.AsyncClient, object_id: str | None = None, **params: str) -> dict[str, Any]:
    """The newest delivery, of an event of this object, once it has ended."""

    async def probe() -> dict[str, Any] | None:
        for found in (await client.get(f"{PATH}/deliveries", params=params)).json()["data"]:
            if object_id in (None, found["object_id"]):
                delivery: dict[str, Any] = found
                return delivery if delivery["ended_at"] is not None else None
        return None

    return await eventually(probe, "the delivery has ended")


@pytest.mark.parametrize(("path", "body", "event_type"), REQUESTS)
async def test_a_request_in_any_dialect_is_sent_its_event(
    client: httpx.AsyncClient,
    receiver: Receiver,
    openai_client: openai.OpenAI,
    secret: str,
    path: str,
    body: dict[str, Any],
    event_type: str,
) -> None:
    response = await client.post(path, json={**body, "webhook": receiver.url})
    assert response.status_code in (200, 202), response.text
    (request,) = await receiver.wait(1)
    event = unwrap(openai_client, request, secret)
    assert event.type == event_type
    assert (event.object, event.id) == ("event", request.headers["webhook-id"])
    headers, answer = response.headers, response.json()
    expected = answer["id"] if path in ("/v1/jobs", "/v1/responses") else headers["x-headrace-job-id"]
    assert event.data.id == expected
    assert json.loads(request.body)["data"] == {"id": expected}, "nothing of the answer"


async def test_a_request_chooses_its_events(client: httpx.AsyncClient, receiver: Receiver) -> None:
    chosen = {"webhook": receiver.url, "webhook_events_filter": ["job.failed"]}
    await client.post("/v1/jobs", json={**JOB, **chosen}, headers={"Prefer": "wait=30"})
    failed = await client.post("/v1/jobs", json={**JOB, **chosen, "prompt": FAIL})
    of_job = {"webhook": receiver.url, "webhook_events_filter": ["job.*"]}
    response = await client.post("/v1/responses", json={"model": "sim", "input": "x", **of_job})
    requests = await receiver.wait(2)
    events = {one["data"]["id"]: one["type"] for one in (json.loads(request.body) for request in requests)}
    job_id = response.headers["x-headrace-job-id"]
    assert events.keys() == {failed.json()["id"], job_id}
    assert events[failed.json()["id"]] == "job.failed"
    assert events[job_id].startswith("job.")


async def test_a_batch_is_sent_its_end(
    client: httpx.AsyncClient, receiver: Receiver, openai_client: openai.OpenAI, secret: str
) -> None:
    line = {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": JOB}
    hooked = {**line, "custom_id": "2", "body": {**JOB, "webhook": receiver.url}}
    content = "\n".join(json.dumps(one) for one in (line, hooked))
    file = await client.post("/v1/files", files={"purpose": (None, "batch"), "file": ("in.jsonl", content)})
    body = {"input_file_id": file.json()["id"], "endpoint": "/v1/completions", "completion_window": "1h"}
    refused = await client.post("/v1/batches", json={**body, "webhook": "http://10.0.0.1/"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "webhook")
    batch = await client.post("/v1/batches", json={**body, "webhook": receiver.url})
    assert batch.status_code == 200, batch.text
    (request,) = await receiver.wait(1)
    event = unwrap(openai_client, request, secret)
    assert (event.type, event.data.id) == ("batch.completed", batch.json()["id"])
    found = (await client.get(f"/v1/batches/{batch.json()['id']}")).json()
    errors = (await client.get(f"/v1/files/{found['error_file_id']}/content")).json()
    assert "not supported in a line of a batch" in json.dumps(errors)


@pytest.mark.parametrize(("url", "reason"), REFUSED)
async def test_urls_that_nothing_is_sent_to_are_refused(client: httpx.AsyncClient, url: str, reason: str) -> None:
    for path, body, _ in REQUESTS:
        refused = await client.post(path, json={**body, "webhook": url})
        assert refused.status_code == 400, path
        error = refused.json()["error"]
        assert error["message"].startswith("webhook: ")
        assert reason in error["message"]
        assert error.get("param", "webhook") == "webhook"
    refused = await client.post(f"{PATH}/endpoints", json={"url": url, "events": ["*"]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "url")
    assert reason in refused.json()["error"]["message"]


async def test_unknown_events_are_refused(client: httpx.AsyncClient, receiver: Receiver) -> None:
    body = {**JOB, "webhook": receiver.url, "webhook_events_filter": ["job.started"]}
    refused = await client.post("/v1/jobs", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "webhook_events_filter")
    refused = await client.post(f"{PATH}/endpoints", json={"url": receiver.url, "events": ["job.started"]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "events")
    invalid: list[dict[str, Any]] = [{"events": []}, {"events": None}, {}]
    for events in invalid:
        refused = await client.post(f"{PATH}/endpoints", json={"url": receiver.url, **events})
        assert refused.status_code == 400


async def test_an_idempotency_key_sends_one_event(client: httpx.AsyncClient, receiver: Receiver) -> None:
    headers = {"Idempotency-Key": "hooked"}
    body = {**JOB, "webhook": receiver.url}
    first, second = [await client.post("/v1/jobs", json=body, headers=headers) for _ in range(2)]
    assert first.json()["id"] == second.json()["id"]
    assert second.headers["Idempotent-Replayed"] == "true"
    other = await client.post("/v1/jobs", json={**body, "webhook": f"{receiver.url}/other"}, headers=headers)
    assert other.status_code == 422
    await receiver.wait(1)
    assert (await ended(client, first.json()["id"]))["tries"] == 1
    assert len(receiver.requests) == 1


async def test_an_endpoint_gets_what_it_subscribes_to(
    client: httpx.AsyncClient, receiver: Receiver, endpoints: Any, openai_client: openai.OpenAI
) -> None:
    thin = await endpoints("job.failed")
    full = await endpoints("response.*", full=True, description="whole objects")
    assert (full["full"], full["enabled"], full["disabled_reason"]) == (True, True, None)
    shown = (await client.get(f"{PATH}/endpoints/{thin['id']}")).json()
    assert "secret" not in shown
    assert shown == {name: value for name, value in thin.items() if name != "secret"}
    listed = (await client.get(f"{PATH}/endpoints")).json()
    assert [one["id"] for one in listed["data"]][:2] == [full["id"], thin["id"]]

    failed = (await client.post("/v1/jobs", json={**JOB, "prompt": FAIL})).json()
    event = unwrap(openai_client, (await receiver.wait(1))[0], thin["secret"])
    assert (event.type, event.data.id) == ("job.failed", failed["id"])
    response = (await client.post("/v1/responses", json={"model": "sim", "input": "x"})).json()
    request = (await receiver.wait(2))[1]
    unwrap(openai_client, request, full["secret"])
    data = json.loads(request.body)["data"]
    assert (data["id"], data["object"], data["output"]) == (response["id"], "response", response["output"])
    with pytest.raises(openai.InvalidWebhookSignatureError):
        unwrap(openai_client, request, thin["secret"])


async def test_during_a_rotation_both_secrets_verify(
    client: httpx.AsyncClient, receiver: Receiver, endpoints: Any, openai_client: openai.OpenAI
) -> None:
    created = await endpoints("*")
    path = f"{PATH}/endpoints/{created['id']}"
    rotated = (await client.post(f"{path}/rotate", json={"overlap_s": 3600})).json()
    assert rotated["secret"] != created["secret"]
    assert datetime.fromisoformat(rotated["old_secret_expires_at"]) > datetime.now(UTC) + timedelta(minutes=50)
    assert (await client.post(f"{path}/test")).status_code == 200
    (first,) = await receiver.wait(1)
    assert len(first.headers["webhook-signature"].split()) == 2
    for secret in (created["secret"], rotated["secret"]):
        assert unwrap(openai_client, first, secret).type == "webhook.test"

    at_once = (await client.post(f"{path}/rotate", json={"overlap_s": 0})).json()
    assert at_once["old_secret_expires_at"] is None
    await client.post(f"{path}/test")
    second = (await receiver.wait(2))[1]
    unwrap(openai_client, second, at_once["secret"])
    for secret in (created["secret"], rotated["secret"]):
        with pytest.raises(openai.InvalidWebhookSignatureError):
            unwrap(openai_client, second, secret)
    refused = await client.post(f"{path}/rotate", json={"overlap_s": 8 * 24 * 3600})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "overlap_s")


async def test_the_secret_of_the_project_is_rotated(
    client: httpx.AsyncClient, receiver: Receiver, openai_client: openai.OpenAI, secret: str
) -> None:
    rotated = (await client.post(f"{PATH}/secret/rotate", json={})).json()
    assert (await client.get(f"{PATH}/secret")).json() == rotated
    await client.post("/v1/jobs", json={**JOB, "webhook": receiver.url})
    (request,) = await receiver.wait(1)
    for one in (secret, rotated["secret"]):
        unwrap(openai_client, request, one)


async def test_a_dead_delivery_is_replayed_with_the_same_id(client: httpx.AsyncClient, receiver: Receiver) -> None:
    receiver.answer = status(410)
    began = datetime.now(UTC) - timedelta(seconds=5)
    job = (await client.post("/v1/jobs", json={**JOB, "webhook": f"{receiver.url}?token=hidden"})).json()
    dead = await ended(client, job["id"])
    assert (dead["last_status"], dead["tries"], dead["endpoint"], dead["next_try_at"]) == (410, 1, None, None)
    assert dead["url"].endswith("?token=hidden"), "its owner sees it"

    receiver.answer = status(200)
    path = f"{PATH}/deliveries/{dead['id']}"
    replayed = await client.post(f"{path}/replay")
    assert (replayed.status_code, replayed.json()["state"]) == (200, "pending"), replayed.text
    first, second = await receiver.wait(2)
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == dead["event_id"]
    assert (await ended(client, job["id"], state="delivered"))["tries"] == 2
    shown = (await client.get(path)).json()
    assert [(one["number"], one["status"], one["error"] is None) for one in shown["try_log"]] == [
        (1, 410, False),
        (2, 200, True),
    ]

    receiver.answer = status(410)
    await client.post(f"{path}/replay")
    await receiver.wait(3)
    await ended(client, job["id"], state="dead")
    receiver.answer = status(200)
    none = await client.post(f"{PATH}/deliveries/replay", json={"since": began.isoformat(), "type": "batch.failed"})
    assert none.json() == {"object": "webhook_replay", "replayed": 0, "has_more": False}
    some = await client.post(f"{PATH}/deliveries/replay", json={"since": began.isoformat()})
    assert some.json()["replayed"] == 1
    await receiver.wait(4)
    for since in ("yesterday", "2026-11-30T12:00:00"):
        refused = await client.post(f"{PATH}/deliveries/replay", json={"since": since})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "since")


async def test_a_disabled_endpoint_gets_nothing_until_it_is_enabled(
    client: httpx.AsyncClient, receiver: Receiver, endpoints: Any
) -> None:
    created = await endpoints("job.*")
    path = f"{PATH}/endpoints/{created['id']}"
    receiver.answer = status(410)
    await client.post("/v1/jobs", json=JOB)
    gone = await ended(client, endpoint=created["id"])
    assert gone["state"] == "dead"
    shown = (await client.get(path)).json()
    assert (shown["enabled"], shown["disabled_reason"]) == (False, "gone")
    for action in (f"{path}/test", f"{PATH}/deliveries/{gone['id']}/replay"):
        assert (await client.post(action)).status_code == 409
    await client.post("/v1/jobs", json=JOB, headers={"Prefer": "wait=30"})
    listed = (await client.get(f"{PATH}/deliveries", params={"endpoint": created["id"]})).json()
    assert [one["id"] for one in listed["data"]] == [gone["id"]], "it was not kept for the endpoint"

    receiver.answer = status(200)
    enabled = (await client.patch(path, json={"enabled": True, "events": ["job.failed"]})).json()
    assert (enabled["enabled"], enabled["failures"], enabled["events"]) == (True, 0, ["job.failed"])
    assert (await client.post(f"{PATH}/deliveries/{gone['id']}/replay")).status_code == 200
    await receiver.wait(2)


async def test_other_projects_find_nothing(
    sim_stack: Stack, client: httpx.AsyncClient, receiver: Receiver, endpoints: Any, other_key: str
) -> None:
    created = await endpoints("*")
    delivery = (await client.post(f"{PATH}/endpoints/{created['id']}/test")).json()
    endpoint, tried = f"{PATH}/endpoints/{created['id']}", f"{PATH}/deliveries/{delivery['id']}"
    requests: list[tuple[str, str, Any]] = [
        ("GET", endpoint, None),
        ("PATCH", endpoint, {"enabled": False}),
        ("DELETE", endpoint, None),
        ("POST", f"{endpoint}/rotate", {}),
        ("POST", f"{endpoint}/test", None),
        ("GET", tried, None),
        ("POST", f"{tried}/replay", None),
        ("POST", f"{PATH}/deliveries/replay", {"since": "2026-01-01T00:00:00Z", "endpoint": created["id"]}),
    ]
    async with bearer(sim_stack, other_key) as other:
        for method, path, body in requests:
            missing = await other.request(method, path, json=body)
            assert missing.status_code == 404, f"{method} {path}"
            assert missing.json()["error"]["code"] in ("endpoint_not_found", "delivery_not_found")
        for path in (f"{PATH}/endpoints", f"{PATH}/deliveries", f"{PATH}/deliveries?endpoint={created['id']}"):
            assert (await other.get(path)).json()["data"] == []
        assert (await other.get(f"{PATH}/secret")).json() != (await client.get(f"{PATH}/secret")).json()
    await receiver.wait(1)


async def test_webhooks_need_the_scope_inference(sim_stack: Stack) -> None:
    async with bearer(sim_stack, create_key(sim_stack, "hook admin", "--scope", "admin")) as admin:
        for path in ("endpoints", "deliveries", "secret"):
            assert (await admin.get(f"{PATH}/{path}")).status_code == 403
    async with httpx.AsyncClient(base_url=sim_stack.url) as anonymous:
        assert (await anonymous.get(f"{PATH}/secret")).status_code == 401


async def test_secrets_of_a_url_are_not_in_the_log_or_the_audit_log(
    sim_stack: Stack, client: httpx.AsyncClient, endpoints: Any, receiver: Receiver
) -> None:
    created = await endpoints("*", url=f"{receiver.url}?token=canary-of-a-url")
    await client.patch(f"{PATH}/endpoints/{created['id']}", json={"url": f"{receiver.url}?other=canary-of-a-url"})
    await client.post("/v1/jobs", json={**JOB, "webhook": f"{receiver.url}?token=canary-of-a-url"})
    await receiver.wait(2)
    async with bearer(sim_stack, create_key(sim_stack, "hook auditor", "--scope", "admin")) as admin:
        params = {"action": "webhook_endpoint", "object": created["id"]}
        entries = (await admin.get("/v1/admin/audit", params=params)).json()["data"]
    assert [entry["action"] for entry in entries] == ["webhook_endpoint.change", "webhook_endpoint.create"]
    for text in (json.dumps(entries), (sim_stack.folder / "api.log").read_text()):
        assert "canary-of-a-url" not in text
        assert created["secret"] not in text
