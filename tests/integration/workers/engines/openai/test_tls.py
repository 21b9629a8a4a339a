"""The relaying engine over TLS, on uvloop as in a worker."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp.connector
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shared.config.models.openai import OpenAIModel, OpenAIOptions
from shared.domain.events import Delta
from shared.domain.request import GenerateRequest, Message
from tests.support.metrics import worker_metrics
from workers.engines.openai.engine import OpenAIEngine

STREAMS, TOKENS = 8, 30
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key with a self-signed certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "upstream")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path / "upstream.pem"
    path.write_bytes(secret + signed.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def upstream(certificate: Path) -> Iterator[str]:
    """A server that closes each connection right after its answer, as many proxies do."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threads = [threading.Thread(target=answer, args=(listening, context)) for _ in range(STREAMS)]
        for thread in threads:
            thread.start()
        yield f"https://127.0.0.1:{listening.getsockname()[1]}/v1"
        for thread in threads:
            thread.join(20)


def answer(listening: socket.socket, context: ssl.SSLContext) -> None:
    accepted, _ = listening.accept()
    with context.wrap_socket(accepted, server_side=True) as connection:
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(65536)
        head, _, body = received.partition(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        while len(body) < length:
            body += connection.recv(65536)
        connection.sendall(HEAD)
        for position in range(TOKENS):
            connection.sendall(chunk({"choices": [{"index": 0, "delta": {"content": f"{position} "}}]}))
            time.sleep(0.004)
        connection.sendall(chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
        connection.sendall(chunk(None) + b"0\r\n\r\n")
        connection.setblocking(False)
        with suppress(ssl.SSLError):
            connection.unwrap()  # sends close_notify and does not wait for the peer's


def chunk(payload: object) -> bytes:
    data = b"data: %b\n\n" % (b"[DONE]" if payload is None else json.dumps(payload).encode())
    return b"%x\r\n%b\r\n" % (len(data), data)


def test_nothing_is_lost_if_the_server_closes_the_connection(
    upstream: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusting = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", trusting)
    texts = uvloop.run(texts_of(upstream))
    assert texts == ["".join(f"{position} " for position in range(TOKENS))] * STREAMS


async def texts_of(url: str) -> list[str]:
    engine = OpenAIEngine(
        OpenAIModel(name="up", engine="openai", model="m", options=OpenAIOptions(base_url=url)),
        worker_metrics("up"),
    )
    await engine.start()
    try:
        return await asyncio.gather(*(text_of(engine) for _ in range(STREAMS)))
    finally:
        await engine.stop()


async def text_of(engine: OpenAIEngine) -> str:
    request = GenerateRequest(messages=[Message(role="user", content="Hello")])
    return "".join([item.text async for item in engine.generate("r", request) if isinstance(item, Delta)])
