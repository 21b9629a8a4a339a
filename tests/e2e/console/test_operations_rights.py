"""The pages of operations without a browser: who may do what, forms with bad values, and texts that are no markup."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import text

from shared.postgres.engine import connect
from tests.e2e.console.test_protection import sign_in, token_of
from tests.support.console import create_key
from tests.support.stack import Stack
from tests.support.waiting import eventually_sync

HOSTILE = (
    '<img src=x onerror="alert(1)">',
    "'\"><script>alert(1)</script>",
    "{{ 7 * 7 }}</title><svg/onload=alert(1)>",
    "javascript:alert(1)//\u202e",
)
MARKUP = ("<img", "<script>alert", "<svg/onload")
ACTIONS = ("models/drain", "models/pause", "models/resume", "keys/new", "keys/change", "keys/rotate", "keys/revoke",
           "keys/projects/new", "keys/projects/tier", "keys/projects/log")  # fmt: skip


@pytest.fixture(scope="module")
def operator(sim_stack: Stack, operator_key: str) -> Iterator[httpx.Client]:
    with sign_in(sim_stack, operator_key) as client:
        client.headers["x-csrf-token"] = token_of(client)
        yield client


@pytest.fixture(scope="module")
def member(sim_stack: Stack, member_key: str) -> Iterator[httpx.Client]:
    with sign_in(sim_stack, member_key) as client:
        client.headers["x-csrf-token"] = token_of(client)
        yield client


@pytest_asyncio.fixture
async def hostile_workers(sim_stack: Stack) -> AsyncIterator[None]:
    """Workers whose ids, models and errors look like markup: one that is alive, and one that was lost."""
    engine = connect(sim_stack.environment["DATABASE_URL"])
    statement = text(
        "INSERT INTO workers (id, model, slots, state, lease_expires_at, options, engine_info, last_error,"
        " breaker_since, breaker_reason, version) VALUES (:id, :text, 2, :text, now() + CAST(:lease AS text)::interval,"
        " jsonb_build_object('options', jsonb_build_object(CAST(:text AS text), CAST(:text AS text))),"
        " jsonb_build_object('engine', CAST(:text AS text), 'dtype', CAST(:text AS text)), :text, now(), :text, :text)"
    )
    async with engine.begin() as connection:
        for number, hostile in enumerate(HOSTILE):
            for lease in ("1 hour", "-1 minute"):
                values = {"id": f"hostile {number} {lease} {hostile}", "text": hostile, "lease": lease}
                await connection.execute(statement, values)
    yield
    async with engine.begin() as connection:
        await connection.execute(text("DELETE FROM workers WHERE id LIKE 'hostile %'"))
    await engine.dispose()


@pytest.mark.parametrize("action", ACTIONS)
def test_members_may_not_operate(member: httpx.Client, action: str) -> None:
    fields = {"worker": "w", "model": "sim", "name": "n", "key": "key_1", "project": "p"}
    for response in (member.post(action, data=fields), member.get(action, params=fields)):
        assert response.status_code == 403
        assert "admin" in response.text


def test_a_member_sees_which_scope_a_page_needs(member: httpx.Client) -> None:
    response = member.get("keys")
    assert response.status_code == 403
    assert "has no <code>admin</code> scope" in response.text
    assert 'href="keys"' not in member.get("models").text, "the navigation does not lead there"


def test_members_see_what_runs_but_not_how(member: httpx.Client, operator: httpx.Client) -> None:
    for path in ("models", "models/model?name=sim"):
        seen, hidden = member.get(path), operator.get(path)
        assert seen.status_code == hidden.status_code == 200
        assert "of 32 slots are busy" in seen.text
        assert "ttft_ms" in hidden.text
        assert "ttft_ms" not in seen.text
        assert "data-ask" in hidden.text
        assert "data-ask" not in seen.text
    assert re.search(r"What the engine runs with.*<dt>Engine</dt><dd>simulated</dd>.*fp_", hidden.text, re.DOTALL)
    assert not re.search("fp_[0-9a-f]{12}", seen.text)


@pytest.mark.parametrize("action", ACTIONS)
def test_actions_need_the_sessions_token(sim_stack: Stack, operator_key: str, action: str) -> None:
    with sign_in(sim_stack, operator_key) as client:
        response = client.post(action, data={"worker": "w", "model": "sim", "name": "forged", "key": "key_1"})
        assert response.status_code == 403
        assert "expired" in response.text


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({}, {"name"}),
        ({"name": "a", "scopes": "root"}, {"scopes"}),
        ({"name": "x" * 300}, {"name"}),
        ({"name": "a\x07b"}, {"name"}),
        ({"name": "a", "scopes": []}, {"scopes"}),
        ({"name": "a", "expires_in_s": "soon"}, {"expires_in_s"}),
        ({"name": "a", "expires_in_s": "99999d"}, {"expires_in_s"}),
        ({"name": "a", "priority_floor": "-1"}, {"priority_floor"}),
        ({"name": "a", "options.token_limits.max_output": "many"}, {"options.token_limits.max_output"}),
        ({"name": "a", "options.token_limits.max_input": "0"}, {"options.token_limits.max_input"}),
        (
            {"name": "a", "options.token_limits.max_output": "5", "options.token_limits.default_output": "9"},
            {"options.token_limits.default_output"},
        ),
        ({"name": "a", "options.allowed_models": "small, no$model"}, {"options.allowed_models"}),
        ({"name": "a", "options.log_level": "some"}, {"options.log_level"}),
        ({"name": "a", "options.log_level": "redacted"}, {"options.log_level"}),
        ({"name": "a", "cache": "on", "options.cache.ttl": "1y"}, {"options.cache.ttl"}),
        ({"name": "a", "cache": "on", "options.cache.scope": "world"}, {"options.cache.scope"}),
        (
            {"name": "a", "options.context.strategy": "summarize", "options.context.target": "0.9"},
            {"options.context.target"},
        ),
        ({"name": "", "expires_in_s": "?", "priority_floor": "x"}, {"name", "expires_in_s", "priority_floor"}),
    ],
)
def test_errors_of_a_new_key_are_at_their_fields(
    operator: httpx.Client, fields: dict[str, object], wrong: set[str]
) -> None:
    response = operator.post("keys/new", data={"scopes": "inference", **fields})
    assert response.status_code == 422
    found = {part.partition('-error"')[0] for part in response.text.split('class="field-error" id="')[1:]}
    assert found == wrong
    assert "hr_" not in response.text, "no key was created"


def test_a_project_of_another_key_has_to_be_named(operator: httpx.Client) -> None:
    assert operator.post("keys/new", data={"name": "twice", "scopes": "inference"}).status_code == 303
    response = operator.post("keys/new", data={"name": "twice", "scopes": "inference"})
    assert response.status_code == 409
    assert 'id="project-error"' in response.text
    fields = {"name": "twice", "project": "twice", "scopes": "inference"}
    assert operator.post("keys/new", data=fields).status_code == 303


def secret_in(page: httpx.Response) -> str:
    return page.text.partition('<code id="secret">')[2].partition("<")[0]


def test_a_new_key_is_shown_once_and_a_reload_creates_no_other(sim_stack: Stack, operator: httpx.Client) -> None:
    response = operator.post("keys/new", data={"name": "shown once", "scopes": "inference"})
    assert response.status_code == 303
    (cookie,) = response.headers.get_list("set-cookie")
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    address = httpx.URL(response.request.url).join(response.headers["location"])
    shown = operator.get(address)
    secret = secret_in(shown)
    headers = {"Authorization": f"Bearer {secret}"}
    assert httpx.get(f"{sim_stack.url}/v1/models", headers=headers).status_code == 200
    reloaded = operator.get(address)
    assert "shown before" in reloaded.text
    assert secret not in reloaded.text
    assert (
        operator.get("keys", params={"project": "shown once"}).text.count('<span class="strong">shown once</span>') == 1
    )


def test_log_levels_are_set_as_by_the_api(sim_stack: Stack, operator: httpx.Client, operator_key: str) -> None:
    """With its checks and its entries in the audit log."""
    assert operator.post("keys/projects/new", data={"name": "levels", "options.log_level": "full"}).status_code == 422
    assert operator.post("keys/projects/new", data={"name": "levels"}).status_code == 303
    refused = operator.post("keys/projects/log", data={"project": "levels", "options.log_level": "redacted"})
    assert refused.status_code == 422
    assert "HEADRACE_LOG_KEY" in refused.text.partition('id="options.log_level-error"')[2]
    for level in ("none", "metadata"):
        response = operator.post("keys/projects/log", data={"project": "levels", "options.log_level": level})
        assert response.status_code == 303
    form = operator.get("keys/projects/log", params={"project": "levels"}).text
    assert '<option value="metadata" selected>' in form
    response = operator.post("keys/new", data={
        "name": "level of a key", "project": "levels", "scopes": "inference", "options.log_level": "none"
    })  # fmt: skip
    assert response.status_code == 303
    assert "log-level=none" in operator.get("keys", params={"project": "levels"}).text
    with httpx.Client(base_url=sim_stack.url, headers={"Authorization": f"Bearer {operator_key}"}) as client:
        projects = client.get("/v1/admin/projects", params={"limit": 100}).json()["data"]
        assert {one["name"]: one["options"]["log_level"] for one in projects}["levels"] == "metadata"
        entries = client.get("/v1/admin/audit", params={"action": "project.change", "object": "levels"}).json()["data"]
    assert [entry["after"]["options"] for entry in entries] == [{"log_level": "metadata"}, {"log_level": "none"}]


def test_a_rotated_key_leads_to_its_successor(sim_stack: Stack, operator: httpx.Client) -> None:
    create_key(sim_stack, "to be rotated", "inference")
    listed = operator.get("keys", params={"project": "to be rotated"}).text
    key_id = listed.partition('href="keys/rotate?key=')[2].partition('"')[0]
    response = operator.post("keys/rotate", data={"key": key_id, "overlap_s": "1h"})
    assert response.status_code == 303
    shown = operator.get(httpx.URL(response.request.url).join(response.headers["location"]))
    assert secret_in(shown).startswith("hr_")
    assert f'<span class="mono">{key_id}</span>' in shown.text


def test_a_session_cannot_lose_its_key_before_the_successor_is_shown(sim_stack: Stack) -> None:
    with sign_in(sim_stack, create_key(sim_stack, "rotates itself", "admin")) as client:
        client.headers["x-csrf-token"] = token_of(client)
        listed = client.get("keys", params={"project": "rotates itself"}).text
        key_id = listed.partition('href="keys/rotate?key=')[2].partition('"')[0]
        response = client.post("keys/rotate", data={"key": key_id, "overlap_s": "0s"})
        assert response.status_code == 422
        assert 'id="overlap_s-error"' in response.text


def test_unknown_names_are_not_found(operator: httpx.Client) -> None:
    for path in ("models/model?name=none", "models/drain?worker=none", "models/pause?model=none",
                 "keys/rotate?key=key_999999", "keys/revoke?key=x", "keys/projects/tier?project=none",
                 "keys/projects/log?project=none"):  # fmt: skip
        assert operator.get(path).status_code == 404, path
    assert operator.post("models/drain", data={"worker": "none"}).status_code == 404
    assert operator.post("models/pause", data={"model": "none"}).status_code == 404
    assert operator.post("keys/revoke", data={"key": "key_999999"}).status_code == 404
    assert operator.get("keys?after=nonsense").status_code in (400, 422)


def test_a_key_is_revoked_by_its_name_only(sim_stack: Stack, operator: httpx.Client) -> None:
    secret = create_key(sim_stack, "to be revoked", "inference")
    key_id = next(
        part.partition('"')[0]
        for part in operator.get("keys").text.split('href="keys/revoke?key=')[1:]
        if 'aria-label="Revoke to be revoked"' in part.partition("</a>")[0]
    )
    response = operator.post("keys/revoke", data={"key": key_id, "confirm": "another"})
    assert response.status_code == 422
    assert 'id="confirm-error"' in response.text
    headers = {"Authorization": f"Bearer {secret}"}
    assert httpx.get(f"{sim_stack.url}/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("hostile", HOSTILE)
def test_names_of_keys_and_projects_are_text(operator: httpx.Client, hostile: str) -> None:
    fields = {"name": hostile, "project": f"project {hostile}", "scopes": "inference"}
    response = operator.post("keys/new", data=fields)
    assert response.status_code == 303
    created = operator.get(httpx.URL(response.request.url).join(response.headers["location"]))
    project = {"project": f"project {hostile}"}
    pages = [created, *(operator.get(path) for path in ("keys", "keys/projects", "keys/new"))]
    pages += [operator.get("keys", params=project), operator.get("keys/new", params=project)]
    pages += [operator.get(f"keys/projects/{form}", params=project) for form in ("tier", "log")]
    pages += [operator.get("keys", params={"project": hostile})]
    pages += [operator.post("keys/projects/new", data={"name": hostile, "tier": hostile})]
    for page in pages:
        assert page.status_code in (200, 422)
        assert not [markup for markup in MARKUP if markup in page.text]
        assert "49</title>" not in page.text


@pytest.mark.usefixtures("hostile_workers")
def test_what_workers_report_is_text(operator: httpx.Client) -> None:
    paths = ["models", "models?x=1"]
    responses = [operator.get(path) for path in paths]
    for number, hostile in enumerate(HOSTILE):
        responses.append(operator.get("models/model", params={"name": hostile}))
        responses.append(operator.get("models/pause", params={"model": hostile}))
        worker = {"worker": f"hostile {number} 1 hour {hostile}"}
        responses.append(operator.get("models/drain", params=worker))
    for response in responses:
        assert response.status_code in (200, 404)
        assert not [markup for markup in MARKUP if markup in response.text]
    assert "hostile 0" in responses[0].text


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_is_tried_is_text(operator: httpx.Client, hostile: str) -> None:
    for fields in ({"model": "auto", "prompt": hostile}, {"model": hostile, "prompt": hostile}):
        for headers in ({}, {"HX-Request": "true"}):
            response = operator.post("routing/try", data=fields, headers=headers)
            assert response.status_code in (200, 422)
            assert not [markup for markup in MARKUP if markup in response.text]


def test_a_try_without_a_prompt_names_the_field(operator: httpx.Client) -> None:
    response = operator.post("routing/try", data={"model": "auto", "prompt": " "}, headers={"HX-Request": "true"})
    assert "prompt: Enter a prompt." in response.text
    unknown = operator.post("routing/try", data={"model": "none", "prompt": "x"}, headers={"HX-Request": "true"})
    assert "model: " in unknown.text


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({}, "all"),
        ({"older_than": "long"}, "older_than"),
        ({"older_than": "99d"}, "older_than"),
        ({"project": "none"}, "project"),
    ],
)
def test_errors_of_a_purge_are_at_their_fields(operator: httpx.Client, fields: dict[str, str], wrong: str) -> None:
    response = operator.post("routing/purge", data=fields)
    assert response.status_code == 422
    assert f'id="{wrong}-error"' in response.text


def test_a_member_removes_its_own_answers_only(
    sim_stack: Stack, member: httpx.Client, operator_key: str, member_key: str
) -> None:
    """Naming another project does not help."""

    def outcome(key: str) -> str:
        body = {"model": "sim", "prompt": "whose answer", "stop": ["🌊"], "temperature": 0, "cache": {"ttl": 600}}
        headers = {"Authorization": f"Bearer {key}", "Prefer": "wait=30"}
        response = httpx.post(f"{sim_stack.url}/v1/jobs", json=body, headers=headers, timeout=60)
        return response.headers["x-headrace-cache"]

    for key in (operator_key, member_key):
        outcome(key)
        assert outcome(key) == "HIT"
    response = member.post("routing/purge", data={"project": "operator", "all": "all"})
    assert response.status_code == 303
    assert outcome(operator_key) == "HIT"
    assert outcome(member_key) == "MISS"


def test_operators_are_told_which_project_they_submit_for(sim_stack: Stack, operator_key: str, member_key: str) -> None:
    for page in ("playground", "batches"):
        with sign_in(sim_stack, operator_key) as operator, sign_in(sim_stack, member_key) as member:
            assert re.search(r"of the project \S+. For another one, sign in with a key of it", operator.get(page).text)
            assert "For another one" not in member.get(page).text


def test_a_waiting_job_says_that_its_queue_is_paused(sim_stack: Stack, operator_key: str) -> None:
    headers = {"Authorization": f"Bearer {operator_key}"}
    job = httpx.post(f"{sim_stack.url}/v1/jobs", json={"model": "orphan", "prompt": "x"}, headers=headers).json()["id"]
    with sign_in(sim_stack, operator_key) as operator:
        assert "queue paused" not in operator.get(f"jobs/{job}").text
        httpx.post(f"{sim_stack.url}/v1/models/orphan/pause", headers=headers).raise_for_status()
        try:
            eventually_sync(lambda: "queue paused" in operator.get(f"jobs/{job}").text, "the page says so")
        finally:
            httpx.post(f"{sim_stack.url}/v1/models/orphan/resume", headers=headers).raise_for_status()
