"""Requests of real clients, rewritten from public reports, as data: `client_requests/CLIENT.yaml`.

A request is accepted, and the header names exactly its members in `ignored`; or it is refused for the parameter
`refused`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
import yaml

FOLDER = Path(__file__).parent / "client_requests"
CASES = [
    pytest.param(case, id=f"{file.stem}: {case['name']}")
    for file in sorted(FOLDER.glob("*.yaml"))
    for case in yaml.safe_load(file.read_text())
]
# A stream has answered when its first text, reasoning or call arrives.
FIRST_OUTPUT = (b'"content":', b"content_block_delta", b"output_item.added", b'"text":', b"tool_calls")


def test_there_are_requests_of_many_clients() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize("case", CASES)
async def test_a_clients_request(sim: httpx.AsyncClient, case: dict[str, Any]) -> None:
    body = {"model": "sim", **case["body"]}
    async with sim.stream("POST", case["path"], json=body, headers=case.get("headers", {})) as response:
        if "refused" in case:
            await response.aread()
            error = response.json()["error"]
            assert response.status_code == 400, error
            assert error.get("param", error["message"].split(":")[0]) == case["refused"], error
            return
        if response.status_code not in (200, 202):
            raise AssertionError((await response.aread()).decode())
        named = response.headers.get("x-headrace-ignored", "")
        assert sorted(map(unquote, filter(None, named.split(", ")))) == sorted(case["ignored"])
        if body.get("stream"):
            assert response.headers["content-type"].startswith("text/event-stream")
            received = b""
            async for chunk in response.aiter_bytes():
                received += chunk
                if any(part in received for part in FIRST_OUTPUT):
                    return
            raise AssertionError(received.decode())
        assert (await response.aread()).startswith(b"{")
