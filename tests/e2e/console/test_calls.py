"""The API's calls below `/console/v1`: the rights of the session's key, and the token of the session."""

from __future__ import annotations

import httpx
import pytest

from tests.e2e.console.test_protection import sign_in, token_of
from tests.support.console import create_key
from tests.support.stack import Stack

JOB = {"model": "sim", "prompt": "x", "max_tokens": 2}


def with_token(client: httpx.Client) -> None:
    """Send the token of its session from now on."""
    client.headers["x-csrf-token"] = token_of(client)


def test_a_session_calls_the_api(sim_stack: Stack, member_key: str) -> None:
    with sign_in(sim_stack, member_key) as client:
        with_token(client)
        job = client.post("v1/jobs", json=JOB, headers={"Prefer": "wait=20"}).json()
        assert job["status"] == "incomplete"
        direct = httpx.get(f"{sim_stack.url}/v1/jobs/{job['id']}", headers={"Authorization": f"Bearer {member_key}"})
        assert direct.json() == job
        assert "event: job.incomplete" in client.get(f"v1/jobs/{job['id']}/stream").text


@pytest.mark.parametrize("path", ["v1/jobs", "v1/batches", "v1/files", "playground/preview"])
def test_calls_need_the_sessions_token(sim_stack: Stack, member_key: str, operator_key: str, path: str) -> None:
    with sign_in(sim_stack, member_key) as client, sign_in(sim_stack, operator_key) as other:
        for headers in ({}, {"x-csrf-token": token_of(other)}):
            assert client.post(path, json=JOB, headers=headers).status_code == 403
        form = {"csrf_token": token_of(client)}
        if path.startswith("v1/"):
            response = client.post(path, data=form)
            assert response.status_code == 403
            assert response.json()["error"]["code"] == "csrf_token_invalid", "forms have no calls"
        cross = {"x-csrf-token": token_of(client), "Sec-Fetch-Site": "cross-site"}
        assert client.post(path, json=JOB, headers=cross).status_code == 403


def test_things_of_others_are_not_found(sim_stack: Stack, member_key: str, operator_key: str) -> None:
    headers = {"Authorization": f"Bearer {operator_key}"}
    with httpx.Client(base_url=sim_stack.url, headers=headers) as api:
        job = api.post("/v1/jobs", json=JOB).json()["id"]
        file = api.post("/v1/files", data={"purpose": "batch"}, files={"file": ("secret.jsonl", b"{}\n")}).json()["id"]
        body = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "1h"}
        batch = api.post("/v1/batches", json=body).json()["id"]
    with sign_in(sim_stack, member_key) as client:
        with_token(client)
        for path in (f"v1/jobs/{job}", f"v1/jobs/{job}/stream", f"v1/files/{file}/content", f"v1/batches/{batch}",
                     f"batches/{batch}", f"batches/{batch}/live", f"playground?job={job}"):  # fmt: skip
            assert client.get(path).status_code == 404, path
        assert client.post(f"v1/batches/{batch}/cancel").status_code == 404
        assert client.delete(f"v1/files/{file}").status_code == 404
        assert "secret.jsonl" not in client.get("batches").text


def test_a_key_without_inference_calls_nothing(sim_stack: Stack) -> None:
    with sign_in(sim_stack, create_key(sim_stack, "admin-only", "admin")) as client:
        with_token(client)
        assert client.post("v1/jobs", json=JOB).status_code == 403
        for path in ("v1/jobs", "v1/files", "v1/batches", "batches", "batches/live", "batches/example.jsonl"):
            assert client.get(path).status_code == 403, path
        preview = {"body": {"prompt": "x"}, "variants": [{"model": "sim"}]}
        assert client.post("playground/preview", json=preview).status_code == 403


def test_without_a_session_there_are_no_calls(sim_stack: Stack) -> None:
    assert httpx.post(f"{sim_stack.url}/console/v1/jobs", json=JOB).json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{sim_stack.url}/console/v1/jobs").status_code == 303


@pytest.mark.parametrize(
    "query", ["after=x", "files_after=x", "after=%00", "after=batch_%3Cscript%3E", "after=" + "x" * 300]
)
def test_a_bad_cursor_is_refused(sim_stack: Stack, member_key: str, query: str) -> None:
    with sign_in(sim_stack, member_key) as client:
        for path in ("batches", "batches/live"):
            response = client.get(f"{path}?{query}")
            assert response.status_code == 400, path
            assert "<script>" not in response.text


@pytest.mark.parametrize("query", ["job=x", "job=job_1&job=x", "job=%00", "job=a&job=b&job=c"])
def test_a_bad_job_is_refused(sim_stack: Stack, member_key: str, query: str) -> None:
    with sign_in(sim_stack, member_key) as client:
        assert client.get(f"playground?{query}").status_code in (400, 404)


def test_a_large_upload_is_streamed(sim_stack: Stack, member_key: str) -> None:
    """It is larger than any other body may be."""
    content = b'{"custom_id": "%s"}\n' % (b"x" * 200_000)
    with sign_in(sim_stack, member_key) as client:
        with_token(client)
        response = client.post("v1/files", data={"purpose": "batch"}, files={"file": ("large.jsonl", content)})
        assert response.status_code == 200
        assert client.get(f"v1/files/{response.json()['id']}/content").content == content
        assert client.post("v1/jobs", json={**JOB, "prompt": "x" * 200_000}).status_code == 413
        assert client.delete(f"v1/files/{response.json()['id']}").status_code == 200


def test_the_code_is_returned_for_any_text(sim_stack: Stack, member_key: str) -> None:
    with sign_in(sim_stack, member_key) as client:
        with_token(client)
        body = {
            "body": {"messages": [], "stop": [], "x": None},
            "variants": [{"model": "sim"}, {"model": "small"}],
            "shown": 1,
            "headers": {"Cache-Control": "no-store"},
        }
        found = client.post("playground/preview", json=body).json()
        code = found["code"]
        assert code.keys() == {"curl", "python", "node"}
        assert "Cache-Control: no-store" in code["curl"]
        assert '"model": "small"' in code["curl"]
        assert '"stop": []' in code["curl"], "it is not changed"
        assert '"x": null' in code["curl"]
        assert found["counts"] == [None, None], "a conversation has messages"
        variants = [{"model": "sim"}]
        wrong: list[object] = [
            [],
            {"body": "x", "variants": variants},
            {"headers": {}, "variants": variants},
            {"body": {}, "variants": []},
            {"body": {}, "variants": variants * 3},
            {"body": {}, "variants": variants, "shown": 2},
        ]
        for bad in wrong:
            assert client.post("playground/preview", json=bad).status_code == 400


def test_the_tokens_of_one_prompt_are_counted_for_each_model(sim_stack: Stack, member_key: str) -> None:
    with sign_in(sim_stack, member_key) as client:
        with_token(client)
        body = {
            "body": {"messages": [{"role": "user", "content": "one two three"}]},
            "variants": [{"model": "sim"}, {"model": "none"}],
        }
        first, second = client.post("playground/preview", json=body).json()["counts"]
        assert (first["tokens"], first["model"], first["estimated"]) == (5, "sim", False)
        assert second is None, "there is no such model; the other one is counted all the same"
