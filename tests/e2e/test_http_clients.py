"""What HTTP clients, monitors and proxies send besides the usual request, rewritten from public reports.

Each request is written to a raw socket, because one HTTP library does not send what another one does.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import NamedTuple

import pytest

from tests.support.metrics import samples
from tests.support.stack import KEY, Stack

CHAT = b'{"model": "sim", "max_tokens": 2, "messages": [{"role": "user", "content": "hi"}]}'
STREAM = CHAT[:-1] + b', "stream": true}'
AUTHORIZATION = f"Authorization: Bearer {KEY}"
# Java's client offers HTTP/2 with each request to an http: address.
OFFERS_HTTP2 = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk")


class Answer(NamedTuple):
    """The last response on a connection."""

    status: int
    headers: dict[str, str]
    body: bytes


def request(
    *headers: str,
    method: str = "POST",
    path: str = "/v1/chat/completions",
    body: bytes = CHAT,
    authorization: str = AUTHORIZATION,
    version: str = "1.1",
) -> bytes:
    length = () if any("chunked" in header for header in headers) else (f"Content-Length: {len(body)}",)
    closing = () if any(header.startswith("Connection:") for header in headers) else ("Connection: close",)
    lines = [f"{method} {path} HTTP/{version}", "Host: api", "Content-Type: application/json", authorization]
    return "\r\n".join([*lines, *length, *closing, *headers, "", ""]).encode() + body


def chunked(body: bytes, size: int = 7) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


async def exchange(stack: Stack, sent: bytes, *, piece: int = 1 << 20) -> Answer:
    """Send a request in pieces, and read until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
    async with asyncio.timeout(20):
        for start in range(0, len(sent), piece):
            writer.write(sent[start : start + piece])
            await writer.drain()
        head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
    writer.close()
    status, *lines = head.decode("latin-1").split("\r\n")
    return Answer(int(status.split()[1]), {name.lower(): value for name, _, value in map(_header, lines)}, body)


def _header(line: str) -> tuple[str, str, str]:
    return line.partition(": ")


@pytest.mark.parametrize("piece", [1 << 20, 40], ids=["in one piece", "in pieces"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_body_is_read_although_the_client_offers_an_upgrade(sim_stack: Stack, framing: str, piece: int) -> None:
    """vllm#57203, uvicorn#2722, langchain4j#3682: the body was lost, for every Java client."""
    sent = request(*OFFERS_HTTP2)
    if framing == "chunked":
        sent = request(*OFFERS_HTTP2, "Transfer-Encoding: chunked", body=chunked(CHAT))
    answer = await exchange(sim_stack, sent, piece=piece)
    assert answer.status == 200, answer
    assert json.loads(answer.body)["object"] == "chat.completion"


async def test_an_upgrade_offered_without_a_body_is_an_ordinary_request(sim_stack: Stack) -> None:
    sent = request(*OFFERS_HTTP2, method="GET", path="/v1/models", body=b"")
    assert (await exchange(sim_stack, sent)).status == 200


async def test_a_stream_to_an_http_1_0_client_has_no_chunks(sim_stack: Stack) -> None:
    """uvicorn#1360: such clients do not know chunks; nginx speaks HTTP/1.0 to its upstreams by default."""
    answer = await exchange(sim_stack, request(version="1.0", body=STREAM))
    assert "transfer-encoding" not in answer.headers
    assert answer.body.startswith(b"data: {")
    assert answer.body.endswith(b"data: [DONE]\n\n")
    whole = await exchange(sim_stack, request(version="1.0"))
    assert len(whole.body) == int(whole.headers["content-length"])


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "GZIP", "deflate"])
async def test_a_compressed_body_is_read(sim_stack: Stack, coding: str) -> None:
    """agentgateway#2402: Claude Code compresses large requests; litellm#41567, ollama#12386."""
    body = zlib.compress(CHAT) if coding == "deflate" else gzip.compress(CHAT)
    answer = await exchange(sim_stack, request(f"Content-Encoding: {coding}", body=body))
    assert answer.status == 200, answer


@pytest.mark.parametrize(
    ("coding", "body", "status"),
    [
        ("gzip", CHAT, 400),
        ("gzip", gzip.compress(CHAT)[:-4], 400),
        ("gzip", gzip.compress(CHAT) * 2, 400),
        ("gzip", gzip.compress(b" " * 200_000), 413),
        ("zstd", b"\x28\xb5\x2f\xfd", 415),
        ("gzip, gzip", gzip.compress(gzip.compress(CHAT)), 415),
    ],
    ids=["not compressed", "cut", "twice", "larger than the limit", "zstd", "two codings"],
)
async def test_a_compressed_body_that_cannot_be_read_is_named(
    sim_stack: Stack, coding: str, body: bytes, status: int
) -> None:
    answer = await exchange(sim_stack, request(f"Content-Encoding: {coding}", body=body))
    assert answer.status == status, answer
    assert "JSON:" not in json.loads(answer.body)["error"]["message"]
    if status == 415:
        assert answer.headers["accept-encoding"] == "gzip, deflate"


async def test_a_compressed_upload_is_refused(sim_stack: Stack) -> None:
    answer = await exchange(sim_stack, request("Content-Encoding: gzip", path="/v1/files", body=gzip.compress(b"x")))
    assert answer.status == 415


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions/", "/v1//chat/completions", "//v1/chat/completions/", "/v1/chat/completions?"]
)
async def test_superfluous_slashes_are_accepted(sim_stack: Stack, path: str) -> None:
    """litellm#8350, open-webui#16749, cline#12532: a base address that ends with a slash. No redirect: letta#3189."""
    assert (await exchange(sim_stack, request(path=path))).status == 200
    assert (await exchange(sim_stack, request(path=path, authorization="X-None: x"))).status == 401


@pytest.mark.parametrize("path", ["/health", "/healthz", "/readyz", "/ping", "/version", "/metrics", "/v1/models"])
async def test_head_is_answered_as_get_without_a_body(sim_stack: Stack, path: str) -> None:
    """fastmcp#275, fastapi-health#18: uptime monitors and load balancers send HEAD."""
    answer = await exchange(sim_stack, request(method="HEAD", path=path, body=b""))
    get = await exchange(sim_stack, request(method="GET", path=path, body=b""))
    assert (answer.status, answer.body) == (get.status, b"")
    assert answer.headers.keys() == get.headers.keys()
    assert ("headrace_http_requests_total", "HEAD", path, str(get.status)) in await samples(sim_stack, "api")


async def test_head_of_a_stream_ends(sim_stack: Stack) -> None:
    async with sim_stack.client() as client:
        body = {"model": "orphan", "prompt": "a"}
        job = (await client.post("/v1/jobs", json=body)).raise_for_status().json()["id"]
        answer = await exchange(sim_stack, request(method="HEAD", path=f"/v1/jobs/{job}/stream", body=b""))
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.body == b""
        await client.post(f"/v1/jobs/{job}/cancel")


async def test_head_of_a_route_without_get_is_refused(sim_stack: Stack) -> None:
    assert (await exchange(sim_stack, request(method="HEAD", body=b""))).status == 405


@pytest.mark.parametrize(
    "authorization",
    [
        f"Authorization: bearer {KEY}",
        f"AUTHORIZATION: BEARER  {KEY} ",
        f"Authorization: Bearer\t{KEY}",
        f"x-api-key:  {KEY} ",
        f"api-key: {KEY}",
        f"Authorization: Bearer \r\nx-api-key: {KEY}",
        f"Authorization: Basic Og==\r\napi-key: {KEY}",
        f"Authorization: Bearer {KEY}\r\nx-api-key: ",
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_keys_are_accepted_as_clients_write_them(sim_stack: Stack, path: str, authorization: str) -> None:
    """litellm#4077 (Azure's clients), term-llm#414 (the scheme's case), litellm#14764, an empty x-api-key."""
    assert (await exchange(sim_stack, request(path=path, authorization=authorization))).status == 200


@pytest.mark.parametrize(
    "authorization", ["Authorization: Bearer", f"Authorization: {KEY}", f"Authorization: Bearer x{KEY}", "api-key: "]
)
async def test_other_keys_are_refused(sim_stack: Stack, authorization: str) -> None:
    assert (await exchange(sim_stack, request(authorization=authorization))).status == 401


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Type: application/json; charset=utf-8",),
        ("Expect: 100-continue",),
        ("Transfer-Encoding: chunked",),
        ("Content-Encoding: identity",),
    ],
    ids=" ".join,
)
async def test_other_forms_of_a_request_are_accepted(sim_stack: Stack, headers: tuple[str, ...]) -> None:
    """huggingface-inference-toolkit#28 (charset), hhvm#1384 (100-continue)."""
    body = chunked(CHAT) if "chunked" in headers[0] else CHAT
    answer = await exchange(sim_stack, request(*headers, path="http://api/v1/chat/completions", body=body))
    assert b"chat.completion" in answer.body


async def test_a_content_type_other_than_json_is_named(sim_stack: Stack) -> None:
    """vllm#11171, litellm#13040: curl's own content type."""
    sent = request().replace(b"application/json", b"application/x-www-form-urlencoded")
    answer = await exchange(sim_stack, sent)
    assert answer.status == 400
    assert "Content-Type: application/json" in json.loads(answer.body)["error"]["message"]
