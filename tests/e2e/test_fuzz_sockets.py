"""Fuzzes the HTTP server with raw bytes and without a key: a fixed hostile corpus, and mutations of requests.

Each connection gets a 4xx or is closed, the log has no stack trace, memory stays flat, and another client is served.
`make test-long` sends many new mutations.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Iterator

import httpx
import hypothesis
import psutil
import pytest
from hypothesis import strategies as some

from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.support.database import drop_database
from tests.support.examples import example_count
from tests.support.stack import KEY, Stack
from tests.support.waiting import eventually_sync

# What a request that is complete, or certainly wrong, takes at most; an incomplete one ends at its timeout.
ANSWER_S = 0.1
GROWTH_BYTES = 32 * 1024 * 1024
POST = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\n"
JSON = b"Content-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
SMUGGLED = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"


def with_length(body: bytes, head: bytes = POST + JSON) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


CORPUS: dict[str, bytes] = {
    # Other protocols
    "TLS": bytes.fromhex("16030100f8010000f40303") + bytes(range(256)),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "Redis": b"*1\r\n$4\r\nINFO\r\n",
    "SOCKS": b"\x05\x01\x00",
    "proxy protocol": b"PROXY TCP4 10.0.0.1 10.0.0.2 1 80\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    # Request lines
    "no version": b"GET /\r\n\r\n",
    "version 0.9": b"GET / HTTP/0.9\r\n\r\n",
    "version 9": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "unknown method": b"HACK /v1/jobs HTTP/1.1\r\nHost: x\r\n\r\n",
    "lower-case method": b"get /v1/jobs HTTP/1.1\r\nHost: x\r\n\r\n",
    "NUL in the method": b"G\0ET /v1/jobs HTTP/1.1\r\nHost: x\r\n\r\n",
    "NUL in the path": b"GET /v1/\0jobs HTTP/1.1\r\nHost: x\r\n\r\n",
    "encoded NUL": b"GET /v1/jobs/%00 HTTP/1.1\r\nHost: x\r\n\r\n",
    "encoded CRLF": b"GET /v1/jobs/x%0d%0aSet-Cookie:%20a=b HTTP/1.1\r\nHost: x\r\n\r\n",
    "raw UTF-8 path": "GET /v1/jöbs HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    "invalid UTF-8 path": b"GET /v1/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    "half an escape": b"GET /v1/jobs/% HTTP/1.1\r\nHost: x\r\n\r\n",
    "overlong escape": b"GET /v1/jobs/%c0%ae%c0%ae/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "parents": b"GET /v1/../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    "tabs": b"GET\t/v1/jobs\tHTTP/1.1\r\nHost: x\r\n\r\n",
    "spaces": b"GET  /v1/jobs  HTTP/1.1\r\nHost: x\r\n\r\n",
    "absolute URI": b"GET http://internal/v1/jobs HTTP/1.1\r\nHost: x\r\n\r\n",
    "absolute URI with user": b"GET http://user:secret@internal:99999/v1/jobs HTTP/1.1\r\nHost: x\r\n\r\n",
    "file URI": b"GET file:///etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    "authority": b"CONNECT internal:443 HTTP/1.1\r\nHost: internal:443\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    "asterisk of a GET": b"GET * HTTP/1.1\r\nHost: x\r\n\r\n",
    "huge URL": b"GET /v1/jobs?" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "many parameters": b"GET /v1/jobs?" + b"a&" * 15_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    # Headers
    "no Host": b"GET /v1/jobs HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "a Host with a path": b"GET /v1/jobs HTTP/1.1\r\nHost: x/../y\r\n\r\n",
    "a Host with spaces": b"GET /v1/jobs HTTP/1.1\r\nHost: x y\r\n\r\n",
    "NUL in a header": b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nX-A: a\0b\r\n\r\n",
    "CR in a header": b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nX-A: a\rb\r\n\r\n",
    "bare LF": b"GET /v1/jobs HTTP/1.1\nHost: x\n\n",
    "no colon": b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nbroken\r\n\r\n",
    "no name": b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\n: a\r\n\r\n",
    "space before the colon": b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nX-A : a\r\n\r\n",
    "folded": b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nX-A: a\r\n b\r\n\r\n",
    "first line folded": b"GET /v1/jobs HTTP/1.1\r\n Host: x\r\n\r\n",
    "large header": b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 40_000 + b"\r\n\r\n",
    "many headers": b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\n" + b"X-A: a\r\n" * 1000 + b"\r\n",
    "wrong keys": b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\n" + b"Authorization: Bearer hr_x\r\n" * 50 + b"\r\n",
    "binary key": b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\x80\r\n\r\n",
    "long key": b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nx-api-key: " + b"k" * 20_000 + b"\r\n\r\n",
    "unknown expectation": POST + b"Expect: 200-maybe\r\nContent-Length: 2\r\n\r\n{}",
    # Smuggling
    "length and chunks": POST + b"Content-Length: 4\r\n" + CHUNKED + b"0\r\n\r\n" + SMUGGLED,
    "chunks and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "two lengths": POST + b"Content-Length: 4\r\nContent-Length: 40\r\n\r\n{}{}" + SMUGGLED,
    "equal lengths": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "list of lengths": POST + b"Content-Length: 2, 2\r\n\r\n{}",
    "negative length": POST + b"Content-Length: -1\r\n\r\n{}",
    "signed length": POST + b"Content-Length: +2\r\n\r\n{}",
    "hexadecimal length": POST + b"Content-Length: 0x2\r\n\r\n{}",
    "huge length": POST + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    "unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "identity": POST + b"Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\n{}",
    "chunked first": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\n" + CHUNKED + b"0\r\n\r\n" + SMUGGLED,
    "coding with a space": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "coding with a tab": POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunks in HTTP/1.0": b"POST /v1/jobs HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "body of a GET": b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n" + SMUGGLED,
    # Chunks
    "negative chunk": POST + CHUNKED + b"-1\r\n{}\r\n0\r\n\r\n",
    "huge chunk": POST + CHUNKED + b"fffffffffffffffff\r\n{}\r\n",
    "prefixed chunk": POST + CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n",
    "chunk without its end": POST + CHUNKED + b"2\r\n{}0\r\n\r\n",
    "chunk with bare LF": POST + CHUNKED + b"2\n{}\n0\n\n",
    "NUL in a chunk size": POST + CHUNKED + b"2\0\r\n{}\r\n0\r\n\r\n",
    "long extension": POST + CHUNKED + b"2;" + b"a=b;" * 50_000 + b"\r\n{}\r\n0\r\n\r\n",
    "many trailers": POST + CHUNKED + b"0\r\n" + b"Authorization: Bearer x\r\n" * 5000 + b"\r\n",
    # Bodies
    "deep JSON": with_length(b"[" * 1_000_000),
    "many objects": with_length(b"{}" * 1_000_000),
    "large number": with_length(b'{"max_tokens": ' + b"9" * 1_000_000 + b"}"),
    "invalid UTF-8": with_length(b'{"model": "\xff"}'),
    "no boundary": with_length(b"--x", b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data\r\n"),
    "many parts": with_length(
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 20_000,
        b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n",
    ),
    "body of a public route": with_length(b" " * 1_000_000, b"POST /healthz HTTP/1.1\r\nHost: x\r\n"),
    # Upgrades
    "websocket": b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x00",
    "h2c": POST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n{}",
    "unknown upgrade": POST + b"Connection: Upgrade\r\nUpgrade: x\r\n" + CHUNKED + b"2\r\n{}\r\n0\r\n\r\n",
    # Incomplete
    "nothing": b"",
    "blank lines": b"\r\n" * 100,
    "half a line": b"GET /v1/jobs HT",
    "half a head": POST,
    "half a body": POST + b"Content-Length: 100\r\n\r\n{",
    "half a chunk": POST + CHUNKED + b"ff\r\n{",
}


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    models: list[dict[str, object]] = [{"name": "sim", "engine": "simulated"}]
    stack = make_stack(
        servers,
        tmp_path_factory,
        "fuzz_sockets",
        models,
        HEADRACE_HEADER_TIMEOUT_S=2,
        HEADRACE_BODY_TIMEOUT_S=2,
        HEADRACE_KEEP_ALIVE_S=2,
    )
    try:
        stack.start_api()
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_fuzz_sockets")


class Fuzzer:
    """Sends bytes on new connections. Those without an answer remain open until `end`."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._process = psutil.Process(stack.processes["api"].pid)
        self._bystander = httpx.Client(base_url=stack.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=10)
        self._open: list[tuple[str, socket.socket]] = []
        self.check_bystander()
        self._memory_before = self._memory()

    def send(self, name: str, *parts: bytes) -> bytes:
        """Send bytes, in several writes; return what was received soon."""
        connection = socket.create_connection(("127.0.0.1", self._stack.port), timeout=5)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
        received, closed = self._read(connection, ANSWER_S)
        self.check(name, received)
        if closed or received:
            connection.close()
        else:
            self._open.append((name, connection))
        return received

    def check(self, name: str, received: bytes) -> None:
        """Each response is a 4xx, or of a route that needs no key."""
        for number, start in enumerate(received.split(b"HTTP/1.1 ")[1:]):
            status = int(start[:3])
            assert status < 500, f"{name}: {start[:300]!r}"
            assert status >= 400 or b'"models"' not in start, f"{name}: response {number} needed a key"
        assert not received or received.startswith(b"HTTP/1.1 "), f"{name}: {received[:100]!r}"

    def check_bystander(self) -> None:
        assert self._bystander.get("/v1/models").status_code == 200

    def end(self) -> None:
        """Check that all connections end, and the process's memory and log."""
        for name, connection in self._open:
            received, closed = self._read(connection, 20)
            self.check(name, received)
            assert closed, f"{name}: the connection stays open"
            connection.close()
        self._open.clear()
        self.check_bystander()
        assert self._memory() - self._memory_before < GROWTH_BYTES
        log = (self._stack.folder / "api.log").read_text()
        for trace in ("Traceback", "Exception in ASGI"):
            assert trace not in log, log[max(0, log.index(trace) - 500) :][:4000]

    def close(self) -> None:
        self._bystander.close()

    def _memory(self) -> int:
        return int(self._process.memory_info().rss)

    @staticmethod
    def _read(connection: socket.socket, within_s: float) -> tuple[bytes, bool]:
        """Read until the connection is closed, or for a time; return what was read and whether it was closed."""
        received = b""
        connection.settimeout(within_s)
        try:
            while data := connection.recv(65536):
                received += data
        except TimeoutError:
            return received, False
        except ConnectionError:
            pass
        return received, True


def test_the_hostile_corpus(stack: Stack) -> None:
    fuzzer = Fuzzer(stack)
    statuses = {}
    for name, data in CORPUS.items():
        received = fuzzer.send(name, data)
        statuses[name] = int(received[9:12]) if received else 0
        fuzzer.check_bystander()
    fuzzer.end()
    fuzzer.close()
    # What must not be accepted, whatever the answer is.
    for name in (
        "no Host",
        "two Hosts",
        "length and chunks",
        "chunks and length",
        "two lengths",
        "folded",
        "huge chunk",
    ):
        assert statuses[name] == 400 or name == "folded", (name, statuses[name])
    assert statuses["huge URL"] == 414
    assert statuses["large header"] == statuses["many headers"] == 431
    for name in ("deep JSON", "many objects", "large number", "invalid UTF-8", "no boundary", "many parts", "long key"):
        assert statuses[name] == 401, (name, statuses[name])


TOKENS = some.sampled_from(
    [
        b"GET ", b"POST ", b"OPTIONS ", b"/v1/jobs", b"/healthz", b"*", b"http://x/", b" HTTP/1.1", b" HTTP/1.0",
        b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"Host: x\r\n", b"Host: \r\n",
        b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
        b"Expect: 100-continue\r\n", b"Authorization: Bearer x\r\n", b"Content-Type: application/json\r\n",
        b"0\r\n\r\n", b"5\r\nhello\r\n", b"ffffffff\r\n", b"{}", b"[[[[", b";a=b", b"X-A: b\r\n", b"\xff\xfe",
        b"a" * 5000,
    ]
)  # fmt: skip
WRITES = some.lists(some.lists(TOKENS | some.binary(max_size=8), max_size=8).map(b"".join), min_size=1, max_size=3)


@some.composite
def mutated(draw: some.DrawFn) -> list[bytes]:
    """A request of the corpus with bytes removed, replaced or inserted, in up to three writes."""
    data = bytearray(draw(some.sampled_from([data for data in CORPUS.values() if 0 < len(data) < 2000])))
    for _ in range(draw(some.integers(1, 4))):
        at = draw(some.integers(0, len(data)))
        data[at : at + draw(some.integers(0, 6))] = draw(TOKENS | some.binary(max_size=4))
    cuts = sorted(draw(some.lists(some.integers(0, len(data)), max_size=2)))
    return [bytes(data[start:end]) for start, end in itertools.pairwise([0, *cuts, len(data)])]


@pytest.fixture(scope="module")
def fuzzer(stack: Stack) -> Iterator[Fuzzer]:
    fuzzer = Fuzzer(stack)
    yield fuzzer
    fuzzer.close()


@example_count(100, long=20_000)
@hypothesis.given(parts=WRITES | mutated())
def test_no_bytes_are_answered_with_more_than_a_rejection(fuzzer: Fuzzer, parts: list[bytes]) -> None:
    fuzzer.send(repr(parts)[:200], *parts)
    fuzzer.check_bystander()


def test_the_connections_that_were_fuzzed_are_closed(stack: Stack, fuzzer: Fuzzer) -> None:
    """Runs after the fuzzing; what is still open ends at its timeout."""
    fuzzer.end()

    def ended() -> bool:
        text = httpx.get(f"{stack.url}/metrics").text
        (line,) = [line for line in text.splitlines() if line.startswith("headrace_http_connections ")]
        return float(line.split()[1]) <= 2

    eventually_sync(ended, "no connection of the fuzzing is left")
