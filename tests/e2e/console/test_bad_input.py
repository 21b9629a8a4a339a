"""Requests that no page of the console makes: an error that says what is wrong, never one of the server."""

from __future__ import annotations

import httpx
import pytest

from tests.e2e.console.test_protection import sign_in, token_of
from tests.support.console import create_key
from tests.support.stack import Stack

NUL = [
    "jobs?model=%00",
    "jobs?user=%00",
    "jobs?project=a%00b",
    "jobs?meta=a%00=b",
    "jobs/live?model=%00",
    "jobs/export?user=%00",
    "jobs/%00",
    "keys?project=%00",
    "keys/projects?after=%00",
    "keys/projects/tier?project=%00",
    "keys/projects/log?project=%00",
    "keys/change?key=%00",
    "keys/rotate?key=%00",
    "models/model?name=%00",
    "models/drain?worker=%00",
    "batches?after=%00",
    "batches/%00",
    "playground?job=%00",
]
TIMES = [
    "jobs?from=0001-01-01T00:00%2B10:00",
    "jobs?to=9999-12-31T23:59-10:00",
    "jobs/export?from=0001-01-01T00:00%2B10:00",
    "v1/jobs?project=%00",
]
FORMS = [
    ("keys/new", {"name": "a\0b", "scopes": "inference"}),
    ("keys/projects/new", {"name": "\0"}),
    ("keys/projects/tier", {"project": "\0", "tier": "x"}),
    ("keys/projects/log", {"project": "\0", "options.log_level": "none"}),
    ("keys/change", {"key": "\0"}),
    ("keys/rotate", {"key": "\0"}),
    ("models/drain", {"worker": "\0"}),
    ("models/pause", {"model": "\0"}),
    ("routing/purge", {"model": "\0"}),
    ("routing/purge", {"project": "\0"}),
    ("jobs/selected", {"action": "nonsense"}),
]


def test_addresses_and_forms_that_no_page_has_are_client_errors(sim_stack: Stack, operator_key: str) -> None:
    with sign_in(sim_stack, operator_key) as client:
        found = {path: client.get(path).status_code for path in (*NUL, *TIMES)}
        token = token_of(client)
        for path, fields in FORMS:
            found[f"{path} {fields}"] = client.post(path, data={**fields, "csrf_token": token}).status_code
    assert {name: status for name, status in found.items() if not 400 <= status < 500} == {}


@pytest.mark.parametrize("query", ["from=0001-01-01", "to=0001-01-01", "from=9999-12-31T23:59", "to=9999-12-31T23:59"])
def test_times_far_away_are_conditions_like_others(sim_stack: Stack, operator_key: str, query: str) -> None:
    with sign_in(sim_stack, operator_key) as client:
        assert client.get(f"jobs?{query}").status_code == 200
        assert client.get(f"jobs/export?{query}").status_code == 200
    headers = {"Authorization": f"Bearer {operator_key}"}
    name, _, moment = query.partition("=")
    found = httpx.get(
        f"{sim_stack.url}/v1/jobs",
        params={{"from": "created_after", "to": "created_before"}[name]: f"{moment[:10]}T23:59:59-10:00"},
        headers=headers,
    )
    assert found.status_code == 200


def test_a_page_with_a_long_address_leads_to_the_sign_in(sim_stack: Stack, operator_key: str) -> None:
    with httpx.Client(base_url=f"{sim_stack.url}/console") as client:
        shown = client.get("jobs", params={"user": "é" * 1000}, follow_redirects=True)
        assert shown.status_code == 200
        assert 'name="key"' in shown.text
        fields = {"key": operator_key, "next": ""}
        assert client.post("sign-in", data=fields).status_code == 303


def test_the_link_of_somebody_else_does_not_replace_a_session(
    sim_stack: Stack, operator_key: str, member_key: str
) -> None:
    headers = {"Authorization": f"Bearer {member_key}"}
    link = httpx.post(f"{sim_stack.url}/v1/console/links", headers=headers).json()["path"]
    assert "sign_in.js" in httpx.get(sim_stack.url + link).text
    with sign_in(sim_stack, operator_key) as client:
        page = client.get(sim_stack.url + link).text
    assert "sign_in.js" not in page
    assert "You are signed in already." in page


def test_a_route_is_tried_with_an_inference_key_only(sim_stack: Stack) -> None:
    key = create_key(sim_stack, "only-admin", "admin")
    with sign_in(sim_stack, key) as client:
        fields = {"model": "auto", "prompt": "x", "csrf_token": token_of(client)}
        assert client.post("routing/try", data=fields).status_code == 403


def test_operators_start_with_the_request_of_any_job_but_do_not_follow_it(
    sim_stack: Stack, operator_key: str, member_key: str
) -> None:
    headers = {"Authorization": f"Bearer {member_key}"}
    body = {"model": "orphan", "prompt": "the prompt of a member"}
    job = httpx.post(f"{sim_stack.url}/v1/jobs", json=body, headers=headers).json()["id"]
    with sign_in(sim_stack, operator_key) as client:
        assert f'href="playground?job={job}"' in client.get(f"jobs/{job}").text
        page = client.get(f"playground?job={job}")
    assert page.status_code == 200
    assert "the prompt of a member" in page.text
    assert job not in page.text
    with sign_in(sim_stack, member_key) as client:
        assert job in client.get(f"playground?job={job}").text
