"""Unknown parameters, browsers and aliases, over real processes. All members: `tests/unit/api/http/test_members.py`."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.test_batches import jsonl, line, wait_for_status
from tests.support.browser import needs_chromium, render
from tests.support.stack import KEY, Stack
from tests.support.waiting import eventually

IGNORED = "x-headrace-ignored"
ORIGIN = "https://chat.example.com"
QUESTION = [{"role": "user", "content": "How high is the water?", "colour": "blue"}]
# A valid request of each API with an unknown member at the top and one inside, and what the header names.
REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "/v1/jobs": ({"messages": QUESTION, "max_tokens": 3, "store": True}, "messages[].colour, store"),
    "/v1/chat/completions": ({"messages": QUESTION, "max_tokens": 3, "store": True}, "messages[].colour, store"),
    "/v1/completions": (
        {"prompt": "the mill", "max_tokens": 3, "max_token": 5, "metadata": {"colour": "mine"}, "é": 1},
        "max_token, %C3%A9",
    ),
    "/v1/responses": (
        {"input": "the mill", "max_output_tokens": 3, "text": {"verbosity": "low"}, "colour": 1},
        "text.verbosity, colour",
    ),
    "/v1/messages": ({"messages": QUESTION, "max_tokens": 3, "speed": "fast"}, "messages[].colour, speed"),
    "/v1/messages/count_tokens": ({"messages": QUESTION, "max_tokens": 3}, "messages[].colour, max_tokens"),
}
STREAMED = [path for path in REQUESTS if path not in ("/v1/jobs", "/v1/messages/count_tokens")]


@pytest.fixture(scope="module")
def strict_url(sim_stack: Stack) -> Iterator[str]:
    """An API that refuses unknown parameters and allows pages of one origin. It leaves batches to the other one."""
    with sim_stack.second_api(
        HEADRACE_UNKNOWN_PARAMETERS="refuse", HEADRACE_CORS_ORIGINS=ORIGIN, HEADRACE_BATCH_POLL_S="3600"
    ) as url:
        yield url


@pytest.fixture
async def strict(sim_stack: Stack, strict_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with sim_stack.client(base_url=strict_url) as client:
        yield client


# Parameters


@pytest.mark.parametrize("path", REQUESTS)
async def test_ignored_parameters_are_named_in_a_header(sim: httpx.AsyncClient, path: str) -> None:
    body, ignored = REQUESTS[path]
    response = await sim.post(path, json={"model": "sim", **body})
    assert response.status_code == (202 if path == "/v1/jobs" else 200), response.text
    assert response.headers[IGNORED] == ignored
    assert (await sim.post("/v1/chat/completions", json={"model": "sim", "store": 1})).headers[IGNORED] == "store"


@pytest.mark.parametrize("path", STREAMED)
async def test_streams_have_the_header_too(sim: httpx.AsyncClient, path: str) -> None:
    body, ignored = REQUESTS[path]
    async with sim.stream("POST", path, json={"model": "sim", "stream": True, **body}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers[IGNORED] == ignored
        await response.aread()


async def test_a_request_without_unknown_parameters_has_no_header(sim: httpx.AsyncClient) -> None:
    body = {"model": "sim", "prompt": "the mill", "max_tokens": 1, "stop": None, "colour": None}
    assert IGNORED not in (await sim.post("/v1/completions", json=body)).headers


async def test_ignored_parameters_are_counted_by_name(sim: httpx.AsyncClient) -> None:
    body = {"model": "sim", "messages": QUESTION, "max_tokens": 1, "verbosity": "low"}

    async def counts() -> dict[str, float]:
        lines = (await sim.get("/metrics")).text.splitlines()
        samples = [item for item in lines if item.startswith("headrace_ignored_parameters_total{")]
        return {item.split('"')[1]: float(item.rsplit(" ", 1)[1]) for item in samples}

    before = await counts()
    await sim.post("/v1/chat/completions", json=body)
    after = await counts()
    assert {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name)} == {
        "verbosity": 1,
        "(other)": 1,
    }


@pytest.mark.parametrize("path", REQUESTS)
async def test_a_strict_server_refuses_them(strict: httpx.AsyncClient, path: str) -> None:
    body, ignored = REQUESTS[path]
    response = await strict.post(path, json={"model": "sim", **body})
    assert response.status_code == 400
    first = ignored.split(",")[0].replace("[]", "[0]")
    assert response.json()["error"]["message"] == f"{first}: this parameter is unknown or not supported"


async def test_results_of_a_batch_name_ignored_parameters_and_invalid_lines(sim_stack: Stack) -> None:
    """Invalid lines end up in the error file; the others run."""
    content = jsonl(
        line("good", store=True, messages=QUESTION, stop=[]),
        line("bad", temperature=9),
        line("other", "the water\u2028\u2029\x85"),
        {**line("elsewhere"), "url": "/v1/embeddings"},
        {**line("more"), "comment": "x"},
        line("unsupported", audio={"voice": "alloy"}),
    )
    async with openai.AsyncOpenAI(base_url=f"{sim_stack.url}/v1", api_key=KEY, max_retries=0) as sdk:
        file = await sdk.files.create(file=("in.jsonl", b"\xef\xbb\xbf" + content + b"oops\n"), purpose="batch")
        batch = await sdk.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        done = await wait_for_status(sdk, batch, "completed")
        assert done.errors is None
        assert done.request_counts is not None
        assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (7, 3, 4)
        assert done.output_file_id is not None
        assert done.error_file_id is not None
        output = (await sdk.files.content(done.output_file_id)).text
        errors = (await sdk.files.content(done.error_file_id)).text
    results = {item["custom_id"]: item for item in map(json.loads, output.splitlines())}
    assert set(results) == {"good", "other", "more"}
    assert results["good"][IGNORED] == ["messages[].colour", "store"]
    assert results["more"][IGNORED] == ["comment"]
    assert IGNORED not in results["other"]
    failed = {item["custom_id"]: item["response"] for item in map(json.loads, errors.splitlines())}
    assert {custom_id: response["status_code"] for custom_id, response in failed.items()} == {
        "bad": 400, "elsewhere": 400, "unsupported": 400, None: 400,
    }  # fmt: skip
    assert failed["bad"]["body"]["error"]["param"] == "temperature"
    assert failed["unsupported"]["body"]["error"]["param"] == "audio"
    assert failed[None]["body"]["error"]["message"].startswith("Line 7: This line is not valid JSON")


async def test_result_files_have_no_unescaped_line_breaks(sim_stack: Stack) -> None:
    """`str.splitlines()` breaks lines at more characters than `\\n`."""
    text = "a\u2028b\u2029c\x85d\x0be\x1cf"
    body = {"model": "sim", "prompt": text, "echo": True, "max_tokens": 1}
    content = json.dumps({"custom_id": text, "method": "POST", "url": "/v1/completions", "body": body}).encode()
    async with openai.AsyncOpenAI(base_url=f"{sim_stack.url}/v1", api_key=KEY, max_retries=0) as sdk:
        file = await sdk.files.create(file=("in.jsonl", content), purpose="batch")
        batch = await sdk.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
        done = await wait_for_status(sdk, batch, "completed")
        assert done.output_file_id is not None
        (only,) = (await sdk.files.content(done.output_file_id)).text.splitlines()
    result = json.loads(only)
    assert result["custom_id"] == text
    assert result["response"]["body"]["choices"][0]["text"].startswith(text)


# Browsers


PREFLIGHT = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}


@pytest.mark.parametrize(
    "path", [*REQUESTS, "/v1/files", "/v1/jobs/job_1/stream", "/v1/models", "/healthz", "/nowhere"]
)
async def test_a_preflight_request_is_answered_on_any_route(strict: httpx.AsyncClient, path: str) -> None:
    headers = {**PREFLIGHT, "Access-Control-Request-Headers": "authorization, last-event-id, x-stainless-os, x-api-key"}
    response = await strict.options(path, headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in response.headers["access-control-allow-methods"]
    allowed = response.headers["access-control-allow-headers"]
    assert all(name in allowed for name in headers["Access-Control-Request-Headers"].split(", "))
    assert "access-control-allow-credentials" not in response.headers


async def test_errors_have_the_headers_too(strict: httpx.AsyncClient, strict_url: str) -> None:
    headers = {"Origin": ORIGIN}
    async with httpx.AsyncClient(base_url=strict_url) as anonymous:
        responses = [
            await anonymous.post("/v1/completions", json={"model": "sim", "prompt": "x"}, headers=headers),
            await strict.post("/v1/completions", json={"model": "sim"}, headers=headers),
            await strict.post("/v1/completions", content=b" " * 200_000, headers=headers),
            await strict.post("/v1/jobs/x", headers=headers),
            await strict.get("/v1/jobs/x", headers=headers),
        ]
    assert [response.status_code for response in responses] == [401, 400, 413, 405, 404]
    for response in responses:
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert IGNORED in response.headers["access-control-expose-headers"]
        assert response.headers["vary"] == "Origin"


async def test_other_origins_are_not_allowed(strict: httpx.AsyncClient) -> None:
    response = await strict.options("/v1/jobs", headers={**PREFLIGHT, "Origin": "https://evil.example.com"})
    assert response.status_code == 400
    assert "access-control-allow-origin" not in response.headers


async def test_cors_is_off_by_default(sim: httpx.AsyncClient) -> None:
    response = await sim.options("/v1/jobs", headers=PREFLIGHT)
    assert response.status_code == 405
    assert "access-control-allow-origin" not in (await sim.get("/v1/models", headers={"Origin": ORIGIN})).headers


PAGE = """<script type="module">
const headers = {"content-type": "application/json", authorization: "Bearer KEY", "x-stainless-lang": "js"};
const send = (key, body) => fetch("API/v1/chat/completions", {
  method: "POST", headers: {...headers, ...key}, body: JSON.stringify({model: "sim", ...body})});
const seen = [];
try {
  const messages = [{role: "user", content: "How high is the water?"}];
  const good = await send({}, {messages, max_tokens: 3, store: true, stream: true});
  const text = await good.text();
  seen.push(good.status, good.headers.get("x-headrace-ignored"), text.trim().endsWith("data: [DONE]"),
            good.headers.get("x-headrace-job-id").startsWith("job_"));
  const invalid = await send({}, {});
  seen.push(invalid.status, (await invalid.json()).error.param);
  const unauthorized = await send({authorization: "Bearer nobody"}, {messages});
  seen.push(unauthorized.status, (await unauthorized.json()).error.code);
} catch (error) {
  seen.push(String(error));
}
document.body.textContent = JSON.stringify(seen);
</script>"""


@needs_chromium
async def test_a_page_of_another_origin_calls_the_api(sim_stack: Stack, tmp_path: Path) -> None:
    page = b""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        origin = f"http://127.0.0.1:{server.server_port}"
        with sim_stack.second_api(HEADRACE_CORS_ORIGINS=f"{ORIGIN}, {origin}") as url:
            page = PAGE.replace("API", url).replace("KEY", KEY).encode()
            allowed = render(origin, tmp_path / "allowed").dom
        page = PAGE.replace("API", sim_stack.url).replace("KEY", KEY).encode()
        forbidden = render(origin, tmp_path / "forbidden").dom
        server.shutdown()
    assert '[200,"store",true,true,400,"messages",401,"invalid_api_key"]' in allowed
    assert '["TypeError: Failed to fetch"]' in forbidden


# Aliases


async def test_the_names_of_vllms_server_are_served(sim_stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=sim_stack.url) as anonymous:
        assert (await anonymous.get("/ping")).status_code == 200
        assert (await anonymous.post("/ping")).status_code == 200
        assert isinstance((await anonymous.get("/version")).json()["version"], str)

        async def same() -> bool:  # models of this stack may have no worker
            health, ready = await anonymous.get("/health"), await anonymous.get("/readyz")
            return (health.status_code, health.json()) == (ready.status_code, ready.json())

        await eventually(same, "/health is the same as /readyz")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/", "/v1/jobs", "/v1/files", "/v1/batches"])
async def test_every_route_accepts_x_api_key(sim_stack: Stack, path: str) -> None:
    async with httpx.AsyncClient(base_url=sim_stack.url) as client:
        with_key = await client.get(path, headers={"x-api-key": KEY})
        assert with_key.status_code == 200
        assert isinstance(with_key.json()["data"], list)
        assert (await client.get(path, headers={"x-api-key": "hr_wrong"})).status_code == 401
        bearer_first = {"x-api-key": "hr_wrong", "Authorization": f"Bearer {KEY}"}
        assert (await client.get(path, headers=bearer_first)).status_code == 200


FORM = {"purpose": "batch", "user": "u", "expires_after[anchor]": "", "custom_llm_provider": "openai"}
UPLOAD = {"file": ("a.jsonl", b"{}\n")}


async def test_unknown_fields_of_an_upload_are_ignored_and_named(sim: httpx.AsyncClient) -> None:
    """LiteLLM's clients send `custom_llm_provider` and `target_model_names`."""
    response = await sim.post("/v1/files", data=FORM, files=UPLOAD)
    assert response.status_code == 200, response.text
    assert response.headers["x-headrace-ignored"] == "user, custom_llm_provider"


async def test_a_strict_server_refuses_unknown_fields_of_an_upload(strict: httpx.AsyncClient) -> None:
    response = await strict.post("/v1/files", data=FORM, files=UPLOAD)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "user"
