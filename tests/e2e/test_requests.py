"""The request log over HTTP, on the command line and in the console, from the end of a job to an export."""

from __future__ import annotations

import io
import json
import secrets
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet
import pytest

from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.console.test_protection import sign_in
from tests.e2e.test_projects import bearer, create_key
from tests.support.command_line import run
from tests.support.database import drop_database
from tests.support.stack import Stack
from tests.support.waiting import eventually

ASKED = "Name a river near ann@example.org."


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The API, which keeps bodies in full, and a worker."""
    models: list[dict[str, object]] = [
        {
            "name": "sim",
            "engine": "simulated",
            "slots": 8,
            "options": {"ttft_ms": 1, "itl_ms": 1, "max_model_len": 4096},
        }
    ]
    key = b64encode(secrets.token_bytes(32)).decode()
    found = make_stack(
        servers, tmp_path_factory, "requests", models, HEADRACE_REQUEST_LOG_LEVEL="full", HEADRACE_LOG_KEY=key
    )
    try:
        found.start_api()
        found.start_worker("sim")
        yield found
    finally:
        found.stop()
        drop_database(servers.postgres_url, "stack_requests")


class Project:
    """A project with jobs, a key that submits them, and one that reads the log."""

    def __init__(self, stack: Stack, name: str) -> None:
        self.stack = stack
        self.name = name
        self.key = create_key(stack, name)
        self.reader_key = create_key(stack, f"{name} reader", "--project", name, "--scope", "logs")
        self.submitter, self.reader = bearer(stack, self.key), bearer(stack, self.reader_key)

    async def logged(self, asked: str = ASKED, **more: Any) -> str:
        """Run a job, and wait until its body is in the log; return its id."""
        body = {"model": "sim", "messages": [{"role": "user", "content": asked}], "max_tokens": 4, **more}
        response = await self.submitter.post("/v1/jobs", json=body, headers={"Prefer": "wait=30"})
        assert response.status_code == 200, response.text
        job_id: str = response.json()["id"]

        async def is_kept() -> bool:
            found = await self.reader.get("/v1/requests", params={"has_body": True})
            return job_id in [one["id"] for one in found.json()["data"]]

        await eventually(is_kept, "the body is in the log")
        return job_id


@pytest.fixture
async def project(stack: Stack) -> AsyncIterator[Project]:
    found = Project(stack, f"logged-{next(_numbers)}")
    async with found.submitter, found.reader:
        yield found


_numbers = iter(range(1000))


async def test_from_the_end_of_a_job_to_an_export(project: Project) -> None:
    job_id = await project.logged(user="ann")
    listed = (await project.reader.get("/v1/requests", params={"user": "ann"})).json()
    (shown,) = listed["data"]
    assert (shown["id"], shown["project"], shown["level"], shown["body"]) == (job_id, project.name, "full", "kept")
    opened = (await project.reader.get(f"/v1/requests/{job_id}")).json()
    assert opened["missing"] is None
    assert opened["content"]["request"]["messages"][0]["content"] == ASKED
    answer = opened["content"]["output"][0]["text"]

    full = await project.reader.get("/v1/requests/export", params={"level": "full", "user": "ann"})
    assert full.headers["x-headrace-redaction-level"] == "full"
    line = json.loads(full.text)
    assert [message["content"] for message in line["messages"]] == [ASKED, answer]
    assert line["metadata"]["headrace"]["rows"] == 1
    redacted = json.loads((await project.reader.get("/v1/requests/export")).text)
    assert redacted["messages"][0]["content"] == "Name a river near [EMAIL]."
    file = (await project.reader.get("/v1/requests/export", params={"format": "parquet"})).content
    table = pyarrow.parquet.read_table(io.BytesIO(file))
    assert table.column("job_id").to_pylist() == [job_id]
    exports = (await project.reader.get("/v1/requests/exports")).json()["data"]
    assert [(one["rows"], one["level"], one["filters"]["format"]) for one in exports] == [
        (1, "redacted", "parquet"), (1, "redacted", "jsonl"), (1, "full", "jsonl"),
    ]  # fmt: skip
    assert all(one["ended_at"] for one in exports)


@pytest.mark.parametrize("is_response", [False, True])
async def test_a_deleted_text_is_gone_from_the_log(project: Project, is_response: bool) -> None:
    """Also from exports. Who has used what when remains."""
    canary = f"the canary {next(_numbers)} sings"
    if is_response:
        body = {"model": "sim", "input": canary, "max_output_tokens": 16}
        created = await project.submitter.post("/v1/responses", json=body)
        assert created.status_code == 200, created.text
        path = f"/v1/responses/{created.json()['id']}"
        (listed,) = (await project.reader.get("/v1/requests")).json()["data"]
        job_id = listed["id"]
    else:
        job_id = await project.logged(canary)
        path = f"/v1/jobs/{job_id}"
        assert canary in (await project.reader.get(f"/v1/requests/{job_id}")).text
    deleted = await project.submitter.delete(path)
    assert deleted.status_code in (200, 204), deleted.text
    opened = await project.reader.get(f"/v1/requests/{job_id}")
    assert (opened.json()["body"], opened.json()["missing"]["reason"]) == ("deleted", "deleted")
    exported = await project.reader.get("/v1/requests/export", params={"level": "full"})
    assert (exported.status_code, exported.text) == (200, "")
    assert canary not in opened.text + (await project.reader.get("/v1/requests")).text


async def test_other_projects_and_keys_without_the_scope(stack: Stack, project: Project) -> None:
    job_id = await project.logged()
    async with bearer(stack, create_key(stack, f"{project.name} stranger", "--scope", "logs")) as stranger:
        assert (await stranger.get("/v1/requests")).json()["data"] == []
        assert (await stranger.get(f"/v1/requests/{job_id}")).status_code == 404
        assert (await stranger.get("/v1/requests/export")).content == b""

        async def counted() -> int | None:  # when the last of the export was sent
            rows: int | None = (await stranger.get("/v1/requests/exports")).json()["data"][0]["rows"]
            return None if rows is None else rows + 1

        assert await eventually(counted, "the export's number of rows") == 1
        refused = await stranger.get("/v1/requests", params={"project": project.name})
        assert (refused.status_code, refused.json()["error"]["param"]) == (403, "project")
    for path in ("requests", f"requests/{job_id}", "requests/export", "requests/exports"):
        response = await project.submitter.get(f"/v1/{path}")
        assert (response.status_code, "`logs` scope" in response.text) == (403, True), path
    assert (await project.reader.get("/v1/jobs")).status_code == 403, "the scope is for the log only"
    async with bearer(stack, create_key(stack, f"{project.name} admin", "--scope", "admin")) as admin:
        of_project = await admin.get("/v1/requests", params={"project": project.name})
        assert [one["id"] for one in of_project.json()["data"]] == [job_id]
        assert (await admin.get(f"/v1/requests/{job_id}")).json()["content"] is not None
        entries = (await admin.get("/v1/admin/audit", params={"object": job_id})).json()["data"]
        assert [entry["action"] for entry in entries] == ["request.open"]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("after=x", "after"),
        ("start=yesterday", "start"),
        ("status=lost", "status"),
        ("min_score=1", "min_score"),
        ("rubric=a&max_score=nan", "max_score"),
        ("limit=0", "limit"),
    ],
)
async def test_bad_conditions_are_named(project: Project, query: str, param: str) -> None:
    response = await project.reader.get(f"/v1/requests?{query}")
    assert response.status_code == 400
    assert param in response.json()["error"]["param"]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("sample=0", "sample"),
        ("sample=2", None),
        ("seed=-1", "seed"),
        ("format=csv", "format"),
        ("level=none", "level"),
    ],
)
async def test_bad_options_of_exports_are_named(project: Project, query: str, param: str | None) -> None:
    response = await project.reader.get(f"/v1/requests/export?{query}")
    assert response.status_code == (200 if param is None else 400)
    if param is not None:
        assert param in response.json()["error"]["param"]


async def test_the_command_line(project: Project, tmp_path: Path) -> None:
    job_id = await project.logged()
    url, key = project.stack.url, project.reader_key
    assert job_id in run(url, "requests", key=key).stdout
    assert f"user: {ASKED}" in run(url, "requests", "show", job_id, key=key).stdout
    path = tmp_path / "set.jsonl"
    result = run(url, "export", "--output", str(path), "--sample", "1", "--model", "sim", key=key)
    assert result.exit_code == 0, result.stderr
    assert json.loads(path.read_text())["metadata"]["job_id"] == job_id


async def test_the_console_shows_a_request_beside_its_answer(stack: Stack, project: Project) -> None:
    job_id = await project.logged("<b>Bold</b> & more")
    with sign_in(stack, project.reader_key) as client:
        assert job_id in client.get("requests").text
        page = client.get(f"requests/{job_id}")
        assert "&lt;b&gt;Bold&lt;/b&gt; &amp; more" in page.text
        raw = client.get(f"requests/{job_id}/raw")
        assert raw.headers["content-type"] == "text/plain; charset=utf-8"
        assert raw.json()["request"]["messages"][0]["content"] == "<b>Bold</b> & more"
    with sign_in(stack, project.key) as client:
        assert "requests" not in client.get("jobs").text.split('class="side-foot"')[0].split("side-pages")[1]
        for path in ("requests", f"requests/{job_id}", f"requests/{job_id}/raw"):
            assert client.get(path).status_code == 403


async def test_usage_as_parquet(project: Project) -> None:
    await project.logged()

    async def report() -> Any:
        response = await project.submitter.get("/v1/usage", params={"group_by": "model", "format": "parquet"})
        assert response.headers["content-type"] == "application/vnd.apache.parquet"
        return pyarrow.parquet.read_table(io.BytesIO(response.content)).to_pylist()

    async def is_summed() -> bool:
        return bool(await report())

    await eventually(is_summed, "the job is in the sums")
    (row,) = await report()
    assert (row["model"], row["requests"], row["charge"]) == ("sim", 1, None)
    statement = await project.submitter.get(
        "/v1/usage/statement?month=2020-01", headers={"Accept": "application/vnd.apache.parquet"}
    )
    assert pyarrow.parquet.read_table(io.BytesIO(statement.content)).num_rows == 0


def test_the_description_has_examples(stack: Stack) -> None:
    described = httpx.get(f"{stack.url}/openapi.json", timeout=60).json()
    for path in ("/v1/requests", "/v1/requests/export", "/v1/requests/exports", "/v1/requests/{job_id}"):
        assert "get" in described["paths"][path]
    for name in ("RequestView", "RequestList", "OpenedRequest", "ExportList"):
        assert described["components"]["schemas"][name]["examples"]
