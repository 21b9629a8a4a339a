"""The receivers of docs/webhooks.md work as they are printed there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.support.ports import free_port
from tests.support.stack import REPOSITORY
from tests.support.waiting import eventually
from tests.support.webhooks import receiving

PAGE = (REPOSITORY / "docs/webhooks.md").read_text()
JOB = {"model": "sim", "prompt": "x", "max_tokens": 2}
PROGRAMS = [("receiver.py", sys.executable), ("receiver.mjs", "node")]


def block(title: str) -> str:
    """The program with this title."""
    found = re.search(rf'^```\w+ title="{re.escape(title)}"\n(.*?)^```$', PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


@contextlib.asynccontextmanager
async def running(program: str, path: Path, secret: str) -> AsyncIterator[tuple[str, asyncio.StreamReader]]:
    """Run a receiver; yields its URL and what it prints."""
    port = free_port()
    environment = {**os.environ, "PORT": str(port), "WEBHOOK_SECRET": secret}
    process = await asyncio.create_subprocess_exec(program, path, env=environment, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:

        async def listens() -> bool:
            assert process.returncode is None
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return False
            writer.close()
            return True

        await eventually(listens, f"{path.name} listens")
        yield f"http://127.0.0.1:{port}/hook", process.stdout
    finally:
        process.kill()
        await process.communicate()


async def break_off(url: str) -> None:
    """Send a part of a request, as anybody can, and wait until the receiver has closed the connection."""
    parsed = httpx.URL(url)
    reader, writer = await asyncio.open_connection(parsed.host, parsed.port)
    writer.write(b"POST /hook HTTP/1.1\r\nhost: receiver\r\ncontent-length: 1000\r\n\r\n{")
    writer.write_eof()
    await reader.read()
    writer.close()


@pytest.mark.parametrize(("title", "program"), PROGRAMS)
async def test_a_receiver_takes_what_is_signed_once(
    sim: httpx.AsyncClient, tmp_path: Path, title: str, program: str
) -> None:
    path = tmp_path / title
    path.write_text(block(title))
    secret = (await sim.get("/v1/webhooks/secret")).json()["secret"]
    async with running(program, path, secret) as (url, output), receiving() as copy, httpx.AsyncClient() as sender:
        job = (await sim.post("/v1/jobs", json={**JOB, "webhook": url})).json()
        assert (await output.readline()).decode() == f"job.incomplete {job['id']}\n"

        await sim.post("/v1/jobs", json={**JOB, "webhook": copy.url})
        (request,) = await copy.wait(1)
        headers = {name: value for name, value in request.headers.items() if name.startswith(("webhook-", "content-"))}
        forged = {**headers, "webhook-signature": "v1,AAAA v2,x nonsense"}
        old = {**headers, "webhook-timestamp": str(int(headers["webhook-timestamp"]) - 3600)}
        cases = (
            (request.body, forged, 400),
            (request.body, old, 400),
            (request.body.replace(b"incomplete", b"completed"), {**headers, "content-length": ""}, 400),
            (request.body, headers, 204),
            (request.body, headers, 204),
        )
        for content, sent, expected in cases:
            sent = {name: value for name, value in sent.items() if name != "content-length"}
            assert (await sender.post(url, content=content, headers=sent)).status_code == expected
        await break_off(url)
        last = (await sim.post("/v1/jobs", json={**JOB, "webhook": url})).json()
        printed = [(await output.readline()).decode().split()[1] for _ in range(2)]
        assert printed[1] == last["id"], "the repeated event was processed once"


async def test_openais_sdk_unwraps_an_event(
    sim: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WEBHOOK_SECRET", (await sim.get("/v1/webhooks/secret")).json()["secret"])
    async with receiving() as receiver:
        schema = {"type": "object", "properties": {"wheels": {"type": "integer"}}, "required": ["wheels"]}
        text = {"format": {"type": "json_schema", "name": "mill", "schema": schema}}
        body = {"model": "sim", "input": "x", "text": text, "webhook": receiver.url}
        response = (await sim.post("/v1/responses", json=body)).json()
        (request,) = await receiver.wait(1)
    exec(block("unwrap.py"), {"body": request.body, "headers": request.headers})  # noqa: S102
    assert response["status"] == "completed"
    assert capsys.readouterr().out == f"{response['id']}\n"
