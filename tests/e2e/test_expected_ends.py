"""Ends that clients, operators and upstream servers cause are not faults: at most a line at INFO and a counter."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.test_jobs import wait_for_end, wait_until_running
from tests.support.database import drop_database
from tests.support.faulty_upstream import Answer, End, faulty_upstream
from tests.support.metrics import samples
from tests.support.ports import free_port
from tests.support.sse import follow
from tests.support.stack import KEY, Stack
from tests.support.waiting import eventually

PORT = free_port()
CHAT, COMPLETIONS, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
RESPONSES, JOBS, FILES = "/v1/responses", "/v1/jobs", "/v1/files"
CONVERSATION = [{"role": "user", "content": "Hello"}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": CONVERSATION, "max_tokens": 100_000},
    COMPLETIONS: {"prompt": "Hello", "max_tokens": 100_000},
    MESSAGES: {"messages": CONVERSATION, "max_tokens": 100_000},
    RESPONSES: {"input": "Hello", "max_output_tokens": 100_000},
}
FORM = "multipart/form-data; boundary=b"


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with short timeouts: `sim` fills the buffers of a reader soon, `slow` never does."""
    fast = {"ttft_ms": 1, "itl_ms": 0, "max_model_len": 1_000_000}
    models: list[dict[str, object]] = [
        {"name": "sim", "engine": "simulated", "slots": 16, "options": fast},
        {"name": "slow", "engine": "simulated", "slots": 16, "options": {**fast, "itl_ms": 20}},
        {
            "name": "up",
            "engine": "openai",
            "model": "theirs",
            "options": {"base_url": f"http://127.0.0.1:{PORT}/v1", "max_retries": 0, "max_wait_s": 0},
        },
    ]
    stack = make_stack(
        servers,
        tmp_path_factory,
        "ends",
        models,
        HEADRACE_LOG_FORMAT="json",
        HEADRACE_SEND_TIMEOUT_S=0.5,
        HEADRACE_STOP_GRACE_S=1,
        HEADRACE_KEY_CACHE_S=1,
        HEADRACE_DRAIN_S=0,
    )
    try:
        stack.start_api()
        for model in ("sim", "slow", "up"):
            stack.start_worker(model)
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_ends")


class Logs:
    """The log lines of all processes of a stack since the start of a test."""

    def __init__(self, stack: Stack) -> None:
        self._folder = stack.folder
        self._accepted: tuple[str, str] | None = None
        self._sizes = {path.name: path.stat().st_size for path in self._folder.glob("*.log")}

    def lines(self) -> list[dict[str, Any]]:
        """The complete lines; one that is not in our format, such as those of a traceback, has the level `raw`."""
        found: list[dict[str, Any]] = []
        for path in sorted(self._folder.glob("*.log")):
            text = path.read_bytes()[self._sizes.get(path.name, 0) :].decode()
            lines = text[: text.rfind("\n") + 1].splitlines()
            found += [json.loads(line) if line.startswith("{") else {"level": "raw", "message": line} for line in lines]
        return found

    def faults(self) -> list[dict[str, Any]]:
        """The lines above INFO, and those with a traceback."""
        return [
            line
            for line in self.lines()
            if "error" in line
            or line["message"].startswith("Traceback")
            or (line["level"] not in ("debug", "info", "raw") and (line["level"], line.get("logger")) != self._accepted)
        ]

    def accept(self, logger: str) -> None:
        """Warnings of a logger are right in this test."""
        self._accepted = ("warning", logger)

    def having(self, text: str) -> list[dict[str, Any]]:
        return [line for line in self.lines() if text in line["message"]]


@pytest.fixture
def logs(stack: Stack) -> Iterator[Logs]:
    logs = Logs(stack)
    yield logs
    assert logs.faults() == []


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.client() as client:
        yield client


Connect = Callable[..., "Raw"]


class Raw:
    """A connection of a client that does not behave."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.connect(("127.0.0.1", port))
        self._socket.setblocking(False)

    async def send(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        length: int | None = None,
        key: str = KEY,
        kind: str = "application/json",
    ) -> None:
        """Send a request. `length`: the length of the body that it announces, if that is not sent completely."""
        size = len(body) if length is None else length
        lines = {"Host": "x", "Authorization": f"Bearer {key}", "Content-Type": kind, "Content-Length": str(size)}
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        await asyncio.get_running_loop().sock_sendall(self._socket, head.encode() + b"\r\n" + body)

    async def receive(self, size: int = 1024) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self._socket, size)

    def reset(self) -> None:
        """Close the connection with a reset, as the kernel does for a client that has died with unread data."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def connect(stack: Stack) -> Iterator[Connect]:
    opened: list[Raw] = []

    def open_one(port: int = stack.port) -> Raw:
        opened.append(Raw(port))
        return opened[-1]

    yield open_one
    for raw in opened:
        raw.close()


def streamed(path: str, model: str = "sim") -> bytes:
    return json.dumps({"model": model, "stream": True, **BODIES[path]}).encode()


async def counted(stack: Stack, name: str, *labels: str) -> float:
    return (await samples(stack, "api")).get((name, *labels), 0.0)


def chunk(choice: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


TEXT = "x" * 65536
# More than the buffers between the server and a client that does not read.
LARGE = Answer(raw=(chunk({"delta": {"content": TEXT}, "text": TEXT}),) * 200 + (chunk({"finish_reason": "stop"}),))


@pytest.mark.parametrize("path", [*BODIES, JOBS])
async def test_a_reader_that_stops_reading(
    stack: Stack, client: httpx.AsyncClient, logs: Logs, connect: Connect, path: str
) -> None:
    drops = await counted(stack, "headrace_stream_drops_total")
    async with faulty_upstream(PORT) as upstream:
        upstream.answers = [LARGE]
        raw = connect()
        if path == JOBS:
            job = (await client.post(JOBS, json={"model": "up", **BODIES[CHAT]})).json()
            await raw.send("GET", job["stream_url"])
        else:
            await raw.send("POST", path, streamed(path, "up"))

        async def dropped() -> bool:
            return await counted(stack, "headrace_stream_drops_total") == drops + 1

        await eventually(dropped, "the reader is disconnected")
    assert len(logs.having("reads nothing")) == 1


@pytest.mark.long
async def test_a_reader_that_stops_reading_a_large_body(
    stack: Stack, client: httpx.AsyncClient, logs: Logs, connect: Connect
) -> None:
    body = {"model": "sim", "prompt": "x", "max_tokens": 12_000, "logprobs": 20}
    job = (await client.post(JOBS, json=body)).json()
    await wait_for_end(client, job["id"])
    before = await counted(stack, "headrace_http_rejections_total", "send_timeout")
    raw = connect()
    await raw.send("GET", f"/v1/jobs/{job['id']}")

    async def dropped() -> bool:
        return await counted(stack, "headrace_http_rejections_total", "send_timeout") == before + 1

    await eventually(dropped, "the reader is disconnected")


@pytest.mark.parametrize("end", [Raw.reset, Raw.close])
async def test_clients_that_disconnect(
    client: httpx.AsyncClient, logs: Logs, connect: Connect, end: Callable[[Raw], None]
) -> None:
    raws = []
    for path in BODIES:
        for stream in (True, False):
            raws.append(connect())
            await raws[-1].send("POST", path, json.dumps({"model": "slow", "stream": stream, **BODIES[path]}).encode())
            if stream:
                assert b"200 OK" in await raws[-1].receive()

    async def running() -> list[dict[str, Any]] | None:
        started = logs.having("started, after")
        return started if len(started) == len(raws) else None

    jobs = await eventually(running, "all jobs run")
    for raw in raws:
        end(raw)
    for job in jobs:
        assert (await wait_for_end(client, job["job"]))["status"] == "cancelled"
    assert len(logs.having("client disconnected; cancelling")) == len(raws)


UPLOAD = (
    b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\nContent-Disposition: form-data;'
    b' name="file"; filename="a.jsonl"\r\n\r\n' + b'{"custom_id": "1"}\n' * 10_000
)


@pytest.mark.parametrize("end", [Raw.reset, Raw.close])
async def test_clients_that_disconnect_while_they_upload(
    stack: Stack, client: httpx.AsyncClient, logs: Logs, connect: Connect, end: Callable[[Raw], None]
) -> None:
    await client.get("/v1/models")
    open_ones = await counted(stack, "headrace_http_connections")
    raws = []
    for path, body, kind in (
        (JOBS, b'{"model": "sim", "prompt": "' + b"x" * 200_000, "application/json"),
        (JOBS, b"", "application/json"),
        (FILES, UPLOAD, FORM),
        (FILES, UPLOAD[:30], FORM),
    ):
        raws.append(connect())
        await raws[-1].send("POST", path, body, length=1_000_000, kind=kind)
    await client.get("/v1/models")
    for raw in raws:
        end(raw)
    await connections_end(stack, open_ones)


async def connections_end(stack: Stack, left: float) -> None:
    async def ended() -> bool:
        return await counted(stack, "headrace_http_connections") <= left

    await eventually(ended, "the API notices it")


async def test_cancelled_jobs(client: httpx.AsyncClient, logs: Logs) -> None:
    running = (await client.post(JOBS, json={"model": "slow", "prompt": "x", "max_tokens": 5000})).json()["id"]
    queued = (await client.post(JOBS, json={"model": "slow", "prompt": "x"})).json()["id"]
    reading = [asyncio.create_task(follow(client, job_id)) for job_id in (running, queued)]
    await wait_until_running(client, running)
    for job_id in (running, queued):
        await client.post(f"/v1/jobs/{job_id}/cancel")
        await wait_for_end(client, job_id)
    for events in await asyncio.gather(*reading):
        assert events[-1].event in ("job.cancelled", "job.incomplete", "job.completed")


@pytest.mark.parametrize("stream", [True, False])
async def test_upstream_servers_that_close(client: httpx.AsyncClient, logs: Logs, stream: bool) -> None:
    answers = [
        Answer(2, End.DISCONNECT),
        Answer(2, End.SHORT),
        Answer(2, End.ERROR),
        Answer(2, End.INVALID_JSON),
        Answer(raw=(b"data: {",)),
        Answer(status=503),
    ]
    async with faulty_upstream(PORT) as upstream:
        for answer in answers:
            upstream.answers = [answer]
            response = await client.post(CHAT, json={"model": "up", "messages": CONVERSATION, "stream": stream})
            assert "error" in response.text
    refused = await client.post(CHAT, json={"model": "up", "messages": CONVERSATION, "stream": stream})
    assert "error" in refused.text
    logs.accept("workers.engines.upstream.engine")


async def test_a_revoked_key(stack: Stack, client: httpx.AsyncClient, logs: Logs, connect: Connect) -> None:
    key = stack.command("api.keys", "create", "revoked").stdout.split()[-1]
    await client.get("/v1/models")
    open_ones = await counted(stack, "headrace_http_connections")
    stream, call, body, upload = [connect() for _ in range(4)]
    await stream.send("POST", CHAT, streamed(CHAT, "slow"), key=key)
    await call.send("POST", CHAT, json.dumps({"model": "slow", **BODIES[CHAT]}).encode(), key=key)
    await body.send("POST", JOBS, b"{", length=1000, key=key)
    await upload.send("POST", FILES, UPLOAD, length=1_000_000, kind=FORM, key=key)
    assert b"200 OK" in await stream.receive()
    listed = stack.command("api.keys", "list").stdout
    (number,) = [line.split()[0] for line in listed.splitlines() if " revoked " in line]
    stack.command("api.keys", "revoke", number)
    await connections_end(stack, open_ones)
    assert len(logs.having("was revoked or has expired")) == 1
    for line in logs.having("started, after"):
        await client.post(f"/v1/jobs/{line['job']}/cancel")


async def test_a_drained_worker(stack: Stack, client: httpx.AsyncClient, logs: Logs) -> None:
    job_id = (await client.post(JOBS, json={"model": "slow", "prompt": "x", "max_tokens": 300})).json()["id"]
    reading = asyncio.create_task(follow(client, job_id))
    await wait_until_running(client, job_id)
    (name,) = stack.workers("slow")
    drained = stack.processes.pop(name)
    drained.terminate()
    assert await asyncio.to_thread(drained.wait, 30) == 0
    await asyncio.to_thread(stack.start_worker, "slow")
    assert (await reading)[-1].event == "job.incomplete"
    logs.accept("py.warnings")  # Celery warns if it is run as root


async def test_a_shutdown_of_the_api(stack: Stack, client: httpx.AsyncClient, logs: Logs, connect: Connect) -> None:
    """With streams, calls, uploads, and clients that do not read."""
    large = {"model": "sim", "prompt": "x", "max_tokens": 12_000, "logprobs": 20}
    job_id = (await client.post(JOBS, json=large)).json()["id"]
    await wait_for_end(client, job_id)
    with stack.second_api() as url:
        port = int(url.rpartition(":")[2])
        for path in BODIES:
            stream = connect(port)
            await stream.send("POST", path, streamed(path, "slow"))
            assert b"200 OK" in await stream.receive(300)
            await connect(port).send("POST", path, json.dumps({"model": "slow", **BODIES[path]}).encode())
        for path in (f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}/stream"):
            reader = connect(port)
            await reader.send("GET", path)
            assert b"200 OK" in await reader.receive(300)
        await connect(port).send("POST", JOBS, b"{", length=1000)
        await connect(port).send("POST", FILES, UPLOAD, length=1_000_000, kind=FORM)
    for line in logs.having("started, after"):
        await client.post(f"/v1/jobs/{line['job']}/cancel")
