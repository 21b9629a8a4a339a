"""The OpenAPI document: every request body has examples, and all examples run."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from api.http.openapi import HEADERS
from tests.e2e.test_jobs import wait_for_end
from tests.e2e.test_projects import bearer, create_key
from tests.support.stack import Stack


def requests_of(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(method, path, schema of the body) of every operation with a JSON body."""
    found = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {})
            if "application/json" in content:
                reference = content["application/json"]["schema"]["$ref"]
                found.append((method, path, document["components"]["schemas"][reference.rsplit("/", 1)[1]]))
    return found


def sent_headers(response: httpx.Response) -> set[str]:
    """The headers of a response that are described, and all that this API has invented."""
    described = {name.lower() for name in HEADERS}
    return {name for name in response.headers if name in described or name.startswith("x-headrace-")}


async def create_file(client: httpx.AsyncClient) -> str:
    """The id of a new file, for examples whose file does not exist."""
    response = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", b"{}")})
    file_id: str = response.json()["id"]
    return file_id


async def test_every_example_runs(vllm: httpx.AsyncClient, vllm_stack: Stack) -> None:
    document = (await vllm.get("/openapi.json")).json()
    admin = create_key(vllm_stack, "examples", "--scope", "admin")
    judge = create_key(vllm_stack, "examples-judge", "--scope", "admin", "--scope", "inference")
    (key,) = [line for line in vllm_stack.command("api.keys", "list").stdout.splitlines() if admin[:11] in line]
    async with bearer(vllm_stack, admin) as client:
        body = {"project": "examples", "key_id": key.split()[0], "open_streams": 100}
        limit: str = (await client.post("/v1/admin/limits", json=body)).json()["id"]
        budgeted = {"project": "examples", "period": "month", "limit_usd": 100, "hard": False}
        budget: str = (await client.post("/v1/admin/budgets", json=budgeted)).json()["id"]

    async with bearer(vllm_stack, judge) as client:
        compared = {"name": "x", "sha256": "0" * 64, "items": 1}
        body = {"kind": "pairwise", "rubric": "helpful", "models": ["large", "large-int4"], "set": compared}
        eval_run: str = (await client.post("/v1/evals/runs", json=body)).json()["id"]

    hook = {"url": "https://hooks.example.com/headrace", "events": ["*"]}
    endpoint: str = (await vllm.post("/v1/webhooks/endpoints", json=hook)).json()["id"]
    model = (await vllm.get("/v1/models")).json()["data"][0]["id"]
    rated = (await vllm.post("/v1/jobs", json={"model": model, "prompt": "x", "max_tokens": 1})).json()["id"]

    async def run(method: str, path: str, example: dict[str, Any]) -> None:
        if path == "/v1/batches":
            example = {**example, "input_file_id": await create_file(vllm)}
        if path in ("/v1/admin/limits", "/v1/admin/budgets"):
            example = {**example, "project": "examples"}
        if "job_id" in example:
            example = {**example, "job_id": rated}
        secret = admin if path.startswith("/v1/admin/") else judge if path.startswith("/v1/evals/") else None
        headers = {"Authorization": f"Bearer {secret}"} if secret is not None else {}
        url = path.replace("{key_id}", key.split()[0]).replace("{name}", "examples").replace("{limit_id}", limit)
        url = url.replace("{budget_id}", budget).replace("{endpoint_id}", endpoint).replace("{job_id}", rated)
        url = url.replace("{run_id}", eval_run)
        response = await vllm.request(method, url, json=example, headers=headers)
        assert response.status_code in (200, 202), f"{method} {path} {example}: {response.text}"
        responses = document["paths"][path][method]["responses"]
        undeclared = sent_headers(response) - {*map(str.lower, responses[str(response.status_code)].get("headers", ()))}
        assert not undeclared, f"{method} {path} {example}"
        if response.status_code == 202:
            assert (await wait_for_end(vllm, response.json()["id"]))["status"] in ("completed", "incomplete")

    runs = []
    for method, path, schema in requests_of(document):
        assert schema["examples"], f"{method} {path} has no example"
        if path == "/v1/evals/labels":  # needs an answer that a judge has scored: console/test_quality.py
            continue
        runs += [run(method, path, example) for example in schema["examples"]]
    assert len(runs) >= 5
    await asyncio.gather(*runs)
    await vllm.delete(f"/v1/webhooks/endpoints/{endpoint}")


async def test_the_docs_page_is_served(sim: httpx.AsyncClient) -> None:
    page = await sim.get("/docs")
    assert page.status_code == 200
    assert "Headrace" in page.text


async def test_every_operation_documents_its_errors(sim: httpx.AsyncClient) -> None:
    document = (await sim.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        if not path.startswith("/v1/"):
            continue
        for method, operation in operations.items():
            assert {"400", "401", "503"} <= operation["responses"].keys(), f"{method} {path}"
            assert operation["summary"], f"{method} {path}"
