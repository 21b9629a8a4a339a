"""What operators do over HTTP: drain workers, pause queues, manage keys and projects, search jobs of others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.e2e.test_jobs import wait_for_end
from tests.e2e.test_projects import bearer, create_key
from tests.support.sse import read_events
from tests.support.stack import Stack
from tests.support.waiting import eventually

SLOW: dict[str, Any] = {"model": "small", "prompt": "x", "max_tokens": 150}


@pytest.fixture(scope="module")
def admin_key(sim_stack: Stack) -> str:
    return create_key(sim_stack, "operator", "--project", "operations", "--scope", "admin", "--scope", "inference")


@pytest.fixture
async def admin(sim_stack: Stack, admin_key: str) -> AsyncIterator[httpx.AsyncClient]:
    async with bearer(sim_stack, admin_key) as client:
        yield client


async def submit(client: httpx.AsyncClient, body: dict[str, Any], **headers: str) -> str:
    response = await client.post("/v1/jobs", json=body, headers=headers)
    assert response.status_code == 202, response.text
    job_id: str = response.json()["id"]
    return job_id


async def status_of(client: httpx.AsyncClient, job_id: str) -> str:
    status: str = (await client.get(f"/v1/jobs/{job_id}")).json()["status"]
    return status


async def workers(client: httpx.AsyncClient, model: str) -> list[dict[str, Any]]:
    response = await client.get("/v1/workers")
    assert response.status_code == 200, response.text
    return [worker for worker in response.json()["data"] if worker["model"] == model]


async def test_workers_are_listed(admin: httpx.AsyncClient) -> None:
    (worker,) = [worker for worker in await workers(admin, "sim") if worker["alive"]]
    assert (worker["state"], worker["slots"], worker["version"]) == ("ready", 32, "0.1.0")
    assert worker["options"]["engine"] == "simulated"
    runs_with = worker["engine_info"]
    assert (runs_with["engine"], runs_with["slots"], runs_with["dtype"]) == ("simulated", 32, None)
    assert runs_with["context"] > 0
    assert runs_with["fingerprint"].startswith("fp_")
    assert worker["state_since"] is not None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/workers"),
        ("POST", "/v1/workers/w/drain"),
        ("POST", "/v1/models/sim/pause"),
        ("POST", "/v1/models/sim/resume"),
        ("GET", "/v1/admin/keys"),
        ("POST", "/v1/admin/keys"),
        ("PATCH", "/v1/admin/keys/key_1"),
        ("POST", "/v1/admin/keys/key_1/rotate"),
        ("POST", "/v1/admin/keys/key_1/revoke"),
        ("GET", "/v1/admin/projects"),
        ("POST", "/v1/admin/projects"),
        ("PATCH", "/v1/admin/projects/operations"),
        ("GET", "/v1/admin/audit"),
        ("GET", "/v1/admin/prices"),
        ("GET", "/v1/jobs?project=operations"),
    ],
)
async def test_other_keys_are_refused(sim: httpx.AsyncClient, admin_key: str, method: str, path: str) -> None:
    body = {"name": "x"} if path.endswith(("keys", "projects")) else {}
    json = body if method in ("POST", "PATCH") else None
    response = await sim.request(method, path, json=json)
    assert response.status_code == 403, response.text
    assert "admin" in response.json()["error"]["message"]
    async with httpx.AsyncClient(base_url=sim.base_url) as anonymous:
        assert (await anonymous.request(method, path, json=json)).status_code == 401


async def test_a_paused_queue_keeps_its_jobs(
    sim_stack: Stack, sim: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    running = await submit(sim, SLOW)
    await eventually(lambda: _has(sim, running, "in_progress"), "the job runs")
    paused = await admin.post("/v1/models/small/pause")
    assert paused.status_code == 200, paused.text
    try:
        since = paused.json()["paused_at"]
        assert (await admin.post("/v1/models/small/pause")).json()["paused_at"] == since, "idempotent"
        waiting = await submit(sim, {**SLOW, "max_tokens": 2})
        late = await submit(sim, {**SLOW, "max_tokens": 2}, **{"Start-Before": "1s"})
        assert (await wait_for_end(sim, running))["status"] == "incomplete", "running jobs go on"
        assert (await wait_for_end(sim, late))["status"] == "expired", "deadlines apply"
        # Also with a worker that starts meanwhile.
        name = sim_stack.start_worker("small")
        shown = (await sim.get(f"/v1/jobs/{waiting}")).json()
        assert (shown["status"], shown["queue_paused"], shown["eta_s"]) == ("queued", True, None)
        async with sim.stream("GET", f"/v1/jobs/{waiting}/stream") as response:
            event = await anext(read_events(response))
        assert (event.event, event.data["paused"], event.data["eta_s"]) == ("job.queued", True, None)
        listed = (await admin.get("/v1/workers")).json()
        assert listed["paused"] == [{"model": "small", "paused_at": since}]
        metrics = (await sim.get("/metrics")).text
        assert 'headrace_queue_paused{model="small"} 1.0' in metrics
        sim_stack.kill(name)
    finally:
        resumed = await admin.post("/v1/models/small/resume")
    assert resumed.json() == {"object": "queue", "model": "small", "paused_at": None}
    ended = await wait_for_end(sim, waiting)
    assert (ended["status"], "queue_paused" in ended) == ("incomplete", False)


async def test_a_drained_worker_finishes_its_jobs(
    sim_stack: Stack, sim: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    name = sim_stack.start_worker("orphan")
    try:
        body = {"model": "orphan", "prompt": "x", "max_tokens": 100}
        jobs = [await submit(sim, body) for _ in range(3)]
        await eventually(lambda: _has(sim, jobs[0], "in_progress"), "a job runs")
        (worker,) = [worker for worker in await workers(admin, "orphan") if worker["alive"]]
        drained = await admin.post(f"/v1/workers/{worker['id']}/drain")
        assert drained.status_code == 200, drained.text
        assert drained.json()["drain_requested_at"] is not None
        process = sim_stack.processes.pop(name)
        assert process.wait(30) == 0
        ended = [await status_of(sim, job) for job in jobs]
        assert ended[0] == "incomplete"
        assert ended[2] == "queued", "it takes no more jobs"
        (worker,) = [one for one in await workers(admin, "orphan") if one["id"] == worker["id"]]
        assert (worker["state"], worker["alive"], worker["running"]) == ("drained", False, 0)
        again = await admin.post(f"/v1/workers/{worker['id']}/drain")
        assert again.status_code == 409
        for job in jobs:
            await sim.post(f"/v1/jobs/{job}/cancel")
    finally:
        for worker_name in sim_stack.workers("orphan"):
            sim_stack.kill(worker_name)


async def test_what_does_not_exist_is_not_found(admin: httpx.AsyncClient) -> None:
    for path, code in (
        ("/v1/workers/nobody@nowhere/drain", "worker_not_found"),
        ("/v1/models/nothing/pause", "model_not_found"),
        ("/v1/models/nothing/resume", "model_not_found"),
        ("/v1/admin/keys/key_999999/revoke", "api_key_not_found"),
        ("/v1/admin/keys/x/revoke", "api_key_not_found"),
    ):
        response = await admin.post(path)
        assert (response.status_code, response.json()["error"]["code"]) == (404, code), response.text


async def test_the_life_of_a_key(sim_stack: Stack, admin: httpx.AsyncClient) -> None:
    body = {"name": "life", "project": "lives", "priority_floor": 5, "options": {"token_limits": {"max_output": 7}}}
    created = await admin.post("/v1/admin/keys", json=body)
    assert created.status_code == 200, created.text
    key = created.json()
    assert (key["project"], key["scopes"], key["priority_floor"]) == ("lives", ["inference"], 5)
    assert key["options"]["token_limits"]["max_output"] == 7
    assert key["secret"].startswith(key["prefix"])
    async with bearer(sim_stack, key["secret"]) as client:
        assert (await client.get("/v1/models")).status_code == 200
        refused = await client.post("/v1/jobs", json={"model": "sim", "prompt": "x", "priority": 3})
        assert refused.status_code == 403
    listed = (await admin.get("/v1/admin/keys", params={"project": "lives"})).json()
    assert [one["id"] for one in listed["data"]] == [key["id"]]
    assert key["secret"] not in str(listed)
    rotated = (await admin.post(f"/v1/admin/keys/{key['id']}/rotate", json={"overlap_s": 60})).json()
    assert (rotated["name"], rotated["priority_floor"]) == ("life", 5)
    assert rotated["secret"] != key["secret"]
    page = (await admin.get("/v1/admin/keys", params={"project": "lives", "limit": 1})).json()
    assert ([one["id"] for one in page["data"]], page["has_more"]) == ([rotated["id"]], True)
    rest = (await admin.get("/v1/admin/keys", params={"project": "lives", "after": page["last_id"]})).json()
    assert [one["id"] for one in rest["data"]] == [key["id"]]
    assert rest["data"][0]["expires_at"] is not None
    revoked = await admin.post(f"/v1/admin/keys/{rotated['id']}/revoke")
    assert revoked.json()["revoked_at"] is not None
    assert (await admin.post(f"/v1/admin/keys/{rotated['id']}/revoke")).status_code == 409


async def test_a_key_is_changed(sim_stack: Stack, admin: httpx.AsyncClient) -> None:
    body = {"name": "change", "project": "changes", "expires_in_s": 3600, "options": {"token_limits": {"max_input": 9}}}
    key = (await admin.post("/v1/admin/keys", json=body)).json()
    path = f"/v1/admin/keys/{key['id']}"
    async with bearer(sim_stack, key["secret"]) as client:
        assert (await client.post("/v1/jobs", json={"model": "sim", "prompt": "x", "priority": 1})).status_code == 403
        changed = await admin.patch(
            path,
            json={
                "name": "changed",
                "scopes": ["admin", "inference"],
                "expires_in_s": None,
                "priority_floor": 0,
                "options": {"token_limits": {"max_output": 5, "max_input": None}, "cache": {}},
            },
        )
        assert changed.status_code == 200, changed.text
        shown = changed.json()
        assert (shown["name"], shown["expires_at"], shown["priority_floor"]) == ("changed", None, 0)
        assert set(shown["scopes"]) == {"admin", "inference"}
        assert shown["options"]["cache"] == {"ttl": 3600, "scope": "project"}
        limits = shown["options"]["token_limits"]
        assert (limits["max_output"], limits["max_input"]) == (5, None)

        async def accepts_urgent_jobs() -> bool:
            body = {"model": "sim", "prompt": "x", "priority": 1, "max_tokens": 2}
            return (await client.post("/v1/jobs", json=body)).status_code == 202

        await eventually(accepts_urgent_jobs, "the API uses the new priorities")
        assert (await client.get("/v1/admin/keys")).status_code == 200
        refused = await client.post("/v1/jobs", json={"model": "sim", "prompt": "x", "max_tokens": 6})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_tokens")
    assert (await admin.patch(path, json={})).json() == shown, "nothing was asked for"
    assert (await admin.patch(path, json={"options": None})).json()["options"]["token_limits"] is None
    log = (sim_stack.folder / "api.log").read_text()
    assert f"key={key['id']} changed by key_" in log
    await admin.post(f"{path}/revoke")
    assert (await admin.patch(path, json={"name": "x"})).status_code == 409


async def test_a_key_that_loses_a_scope_loses_its_streams(sim_stack: Stack, admin: httpx.AsyncClient) -> None:
    key = (await admin.post("/v1/admin/keys", json={"name": "loses", "scopes": ["inference", "admin"]})).json()
    async with bearer(sim_stack, key["secret"]) as client:
        request = client.build_request("POST", "/v1/chat/completions", json={
            "model": "small", "messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 5000,
        })  # fmt: skip
        stream = await client.send(request, stream=True)
        assert stream.status_code == 200
        changed = await admin.patch(f"/v1/admin/keys/{key['id']}", json={"scopes": ["admin"]})
        assert changed.json()["scopes"] == ["admin"]
        with pytest.raises(httpx.RemoteProtocolError):
            async for _ in stream.aiter_bytes():
                pass
        assert (await client.get("/v1/jobs")).status_code == 403
        await client.patch(f"/v1/admin/keys/{key['id']}", json={"scopes": ["admin", "inference"]})

        async def may_cancel_again() -> bool:
            cancelled = await client.post(f"/v1/jobs/{stream.headers['x-headrace-job-id']}/cancel")
            return cancelled.status_code == 200

        await eventually(may_cancel_again, "the key has its scope again")


async def test_a_key_cannot_take_the_admin_scope_from_itself(admin: httpx.AsyncClient) -> None:
    (own,) = [
        key for key in (await admin.get("/v1/admin/keys", params={"project": "operations"})).json()["data"]
        if key["name"] == "operator"
    ]  # fmt: skip
    refused = await admin.patch(f"/v1/admin/keys/{own['id']}", json={"scopes": ["inference"]})
    assert (refused.status_code, refused.json()["error"]["message"][:7]) == (409, "scopes:")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": None}, "name"),
        ({"scopes": []}, "scopes"),
        ({"project": "other"}, "project"),
        ({"priority_floor": 10}, "priority_floor"),
        ({"options": {"cache": {"ttl": 0}}}, "options.cache.ttl"),
        ({"options": {"token_limits": {"on_exceed": "clamp"}}}, "options.token_limits.on_exceed"),
        ({"options": {"context": {"trigger": 0.2}}}, "options.context.target"),
    ],
)
async def test_an_error_of_a_change_names_the_field(admin: httpx.AsyncClient, body: dict[str, Any], param: str) -> None:
    key = (await admin.post("/v1/admin/keys", json={"name": "k", "project": "refused changes"})).json()
    response = await admin.patch(f"/v1/admin/keys/{key['id']}", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


async def test_a_project_is_changed(admin: httpx.AsyncClient) -> None:
    await admin.post("/v1/admin/projects", json={"name": "a/b c"})
    changed = await admin.patch("/v1/admin/projects/a%2Fb%20c", json={"tier": "free"})
    assert (changed.status_code, changed.json()["tier"]) == (200, "free")
    assert (await admin.patch("/v1/admin/projects/a%2Fb%20c", json={})).json()["tier"] == "free"
    assert (await admin.patch("/v1/admin/projects/a%2Fb%20c", json={"tier": None})).json()["tier"] is None
    refused = await admin.patch("/v1/admin/projects/a%2Fb%20c", json={"tier": "not a word"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tier")
    assert changed.json()["options"] == {"log_level": None, "redaction": None}
    options = {"options": {"log_level": "none"}}
    assert (await admin.patch("/v1/admin/projects/a%2Fb%20c", json=options)).json()["options"]["log_level"] == "none"
    assert (await admin.patch("/v1/admin/projects/a%2Fb%20c", json={})).json()["options"]["log_level"] == "none"
    (entry, *_) = (await admin.get("/v1/admin/audit", params={"object": "a/b c"})).json()["data"]
    assert (entry["action"], entry["after"]) == ("project.change", options)
    for removed in (None, {"log_level": None}):
        response = await admin.patch("/v1/admin/projects/a%2Fb%20c", json={"options": removed})
        assert response.json()["options"]["log_level"] is None
    for path, code in (("projects/nothing", "project_not_found"), ("keys/key_999999", "api_key_not_found")):
        response = await admin.patch(f"/v1/admin/{path}", json={})
        assert (response.status_code, response.json()["error"]["code"]) == (404, code)


async def test_a_level_that_keeps_bodies_needs_a_key_to_encrypt_them(admin: httpx.AsyncClient) -> None:
    key = (await admin.post("/v1/admin/keys", json={"name": "k", "project": "log levels"})).json()
    options = {"options": {"log_level": "redacted"}}
    for method, path, body in (
        ("POST", "projects", {"name": "another", **options}),
        ("PATCH", "projects/log levels", options),
        ("POST", "keys", {"name": "k", "project": "log levels", **options}),
        ("PATCH", f"keys/{key['id']}", options),
    ):
        refused = await admin.request(method, f"/v1/admin/{path}", json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "options.log_level"), refused.text
        assert "HEADRACE_LOG_KEY" in refused.json()["error"]["message"]
    level = {"options": {"log_level": "metadata"}}
    assert (await admin.patch(f"/v1/admin/keys/{key['id']}", json=level)).json()["options"]["log_level"] == "metadata"
    unknown = await admin.patch("/v1/admin/projects/log levels", json={"options": {"log_level": "some"}})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "options.log_level")


async def test_errors_about_keys_name_the_field(admin: httpx.AsyncClient) -> None:
    for body, param in (
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x", "scopes": ["root"]}, "scopes[0]"),
        ({"name": "x", "priority_floor": 10}, "priority_floor"),
        ({"name": "x", "options": {"token_limits": {"max_output": 0}}}, "options.token_limits.max_output"),
    ):
        response = await admin.post("/v1/admin/keys", json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
    taken = await admin.post("/v1/admin/keys", json={"name": "operations"})
    assert taken.status_code == 409
    assert taken.json()["error"]["message"].startswith("project: ")
    assert (await admin.get("/v1/admin/keys", params={"after": "x"})).json()["error"]["param"] == "after"


async def test_projects(admin: httpx.AsyncClient) -> None:
    created = await admin.post("/v1/admin/projects", json={"name": "zoo", "tier": "free"})
    assert (created.json()["name"], created.json()["tier"], created.json()["keys"]) == ("zoo", "free", 0)
    assert (await admin.post("/v1/admin/projects", json={"name": "zoo"})).status_code == 409
    await admin.post("/v1/admin/keys", json={"name": "k", "project": "zoo"})
    names: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = (await admin.get("/v1/admin/projects", params={"limit": 2, **after})).json()
        names += [project["name"] for project in page["data"]]
        zoo = [project for project in page["data"] if project["name"] == "zoo"]
        assert all(project["keys"] == 1 for project in zoo)
        if not page["has_more"]:
            break
        after = {"after": page["last_id"]}
    assert {"e2e", "operations", "zoo"} <= set(names)
    assert len(names) == len(set(names))


async def test_the_paths_of_earlier_versions_remain(admin: httpx.AsyncClient) -> None:
    key = (await admin.post("/v1/api_keys", json={"name": "former", "project": "former paths"})).json()
    changed = await admin.patch(f"/v1/api_keys/{key['id']}", json={"name": "changed"})
    assert changed.json()["name"] == "changed"
    assert (await admin.patch("/v1/projects/former paths", json={"tier": "free"})).json()["tier"] == "free"
    assert "/v1/api_keys" not in (await admin.get("/openapi.json")).json()["paths"]


async def test_a_key_may_be_limited_to_models(sim_stack: Stack, admin: httpx.AsyncClient) -> None:
    body = {"name": "limited", "project": "limited", "options": {"allowed_models": ["sim"]}}
    created = await admin.post("/v1/admin/keys", json=body)
    assert created.status_code == 200, created.text
    key = created.json()
    async with bearer(sim_stack, key["secret"]) as client:
        assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["sim"]
        assert (await client.get("/v1/models/sim")).status_code == 200
        message = {"role": "user", "content": "x"}
        small: dict[str, Any] = {"model": "small", "max_tokens": 2}
        for refused in (
            await client.get("/v1/models/small"),
            await client.post("/v1/jobs", json={**small, "prompt": "x"}),
            await client.post("/v1/chat/completions", json={**small, "messages": [message]}),
            await client.post("/v1/responses", json={"model": "small", "input": "x"}),
            await client.post("/v1/route", json={**small, "messages": [message]}),
        ):
            assert refused.status_code == 404, refused.text
            error = refused.json()["error"]
            assert (error["code"], error["param"]) == ("model_not_found", "model")
            assert "may use: sim." in error["message"]
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            response = await client.post(path, json={**small, "messages": [message]})
            assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found_error"), response.text
        assert (await client.post("/v1/jobs", json={**small, "model": "sim", "prompt": "x"})).status_code == 202
        path = f"/v1/admin/keys/{key['id']}"
        changed = await admin.patch(path, json={"options": {"allowed_models": None}})
        assert changed.json()["options"]["allowed_models"] is None

        async def may_use_all() -> bool:
            return (await client.get("/v1/models/small")).status_code == 200

        await eventually(may_use_all, "the key is no longer limited")
    empty = await admin.patch(path, json={"options": {"allowed_models": []}})
    assert (empty.status_code, empty.json()["error"]["param"]) == (400, "options.allowed_models")


async def test_changes_are_in_the_audit_log(sim_stack: Stack, admin: httpx.AsyncClient) -> None:
    project = "audited"
    key = (await admin.post("/v1/admin/keys", json={"name": "a", "project": project})).json()
    await admin.patch(f"/v1/admin/keys/{key['id']}", json={"name": "b", "priority_floor": 3})
    successor = (await admin.post(f"/v1/admin/keys/{key['id']}/rotate", json={"overlap_s": 60})).json()
    await admin.patch(f"/v1/admin/projects/{project}", json={"tier": "free"})
    sim_stack.command("api.keys", "revoke", successor["id"])

    async def entries(**params: Any) -> list[dict[str, Any]]:
        response = await admin.get("/v1/admin/audit", params=params)
        assert response.status_code == 200, response.text
        assert key["secret"] not in response.text
        data: list[dict[str, Any]] = response.json()["data"]
        return data

    found = await entries(project=project)
    assert [(entry["action"], entry["object_id"], entry["key_name"]) for entry in found] == [
        ("key.revoke", successor["id"], None),
        ("project.change", project, "operator"),
        ("key.rotate", key["id"], "operator"),
        ("key.create", successor["id"], "operator"),
        ("key.change", key["id"], "operator"),
        ("key.create", key["id"], "operator"),
        ("project.create", project, "operator"),
    ]
    revoked, tier, rotated, replaced, changed, created, _ = found
    assert (revoked["key"], revoked["before"], list(revoked["after"])) == (None, {"revoked_at": None}, ["revoked_at"])
    assert (tier["before"], tier["after"]) == ({"tier": None}, {"tier": "free"})
    assert (rotated["before"], list(rotated["after"])) == ({"expires_at": None}, ["expires_at"])
    assert replaced["after"]["replaces"] == key["id"]
    assert (changed["before"], changed["after"]) == ({"name": "a"}, {"name": "b"}), "only what has another value"
    assert (created["before"], created["after"]["scopes"]) == (None, ["inference"])

    earlier = await entries(object="orphan")
    for action in ("pause", "pause", "resume"):
        await admin.post(f"/v1/models/orphan/{action}")
    logged = await entries(object="orphan")
    assert [entry["action"] for entry in logged[: len(logged) - len(earlier)]] == ["model.resume", "model.pause"]

    page = (await admin.get("/v1/admin/audit", params={"project": project, "limit": 6})).json()
    assert (len(page["data"]), page["has_more"]) == (6, True)
    rest = await entries(project=project, after=page["last_id"])
    assert [entry["action"] for entry in rest] == ["project.create"]
    assert {entry["action"] for entry in await entries(action="project")} == {"project.create", "project.change"}
    (operator,) = {entry["key"] for entry in found} - {None}
    assert {entry["key"] for entry in await entries(key=operator)} == {operator}
    for params, param in (({"after": "x"}, "after"), ({"key": "x"}, "key"), ({"action": "DROP"}, "action")):
        refused = await admin.get("/v1/admin/audit", params=params)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


async def test_prices_are_listed(admin: httpx.AsyncClient) -> None:
    response = await admin.get("/v1/admin/prices", params={"model": "nothing", "history": True})
    assert (response.status_code, response.json()["data"]) == (200, [])
    assert (await admin.get("/v1/admin/prices", params={"after": "x"})).json()["error"]["param"] == "after"


async def test_a_search_over_http(sim: httpx.AsyncClient, admin: httpx.AsyncClient) -> None:
    tagged = await submit(
        sim, {"model": "sim", "prompt": "x", "max_tokens": 2, "user": "ann", "metadata": {"team": "a=b"}}
    )
    ended = await wait_for_end(sim, tagged)

    async def found(client: httpx.AsyncClient, **params: Any) -> list[str]:
        response = await client.get("/v1/jobs", params=params)
        assert response.status_code == 200, response.text
        assert response.json()["partial"] is False
        return [job["id"] for job in response.json()["data"]]

    assert await found(sim, metadata="team=a=b") == [tagged]
    assert await found(sim, metadata="team=a=b", user="ann", status=["queued", ended["status"]], model="sim") == [
        tagged
    ]
    assert await found(sim, metadata="team=a") == []
    created = ended["created_at"]
    assert tagged in await found(sim, created_after=created)
    assert tagged not in await found(sim, created_before=created)
    assert await found(admin, metadata="team=a=b") == [], "of another project"
    assert await found(admin, metadata="team=a=b", project="e2e") == [tagged]
    assert await found(admin, metadata="team=a=b", project="*") == [tagged]
    keys = (await admin.get("/v1/admin/keys", params={"project": "e2e"})).json()["data"]
    everything = [await found(admin, metadata="team=a=b", project="*", key=key["id"]) for key in keys]
    assert sorted(everything) == sorted([[]] * (len(keys) - 1) + [[tagged]])
    for params, param in (
        ({"metadata": "team"}, "metadata"),
        ({"key": "x"}, "key"),
        ({"created_after": "yesterday"}, "created_after"),
        ({"after": "x"}, "after"),
        ({"project": "nothing"}, "project"),
    ):
        response = await admin.get("/v1/jobs", params=params)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


async def _has(client: httpx.AsyncClient, job_id: str, status: str) -> bool:
    return await status_of(client, job_id) == status
