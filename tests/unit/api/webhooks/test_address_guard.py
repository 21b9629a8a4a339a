"""Webhooks reach public addresses only. What is refused gets not even a connection."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from typing import Any

import httpcore
import httpx
import pytest
from httpx_secure import SSRFProtectionError

from api.webhooks.address_guard import (
    MAX_URL,
    AddressPolicy,
    RefusedUrl,
    Resolver,
    _ResolvingBackend,
    open_client,
    resolve_host,
)
from api.webhooks.sender import Sender, TryResult
from shared.runtime.aio import cancel_and_wait
from tests.support.webhooks import LOCAL, delivery, post, receiving, status

# The forms of addresses that are not public, as the host of a URL.
_V4 = """
    127.0.0.1 127.0.0.2 127.255.255.254 127.1 127.0.1 2130706433 0x7f000001 0x7f.0x0.0x0.0x1 0x7f.1 0177.0.0.1
    017700000001 0177.1 127.0.0.1. 0.0.0.0 0 0x0 00.00.00.00 0.0.0.1 10.0.0.1 10.255.255.255 167772161 0x0a000001
    012.0.0.1 10.1 172.16.0.1 172.31.255.255 2886729729 192.168.0.1 192.168.1.1 192.168.257 3232235777 0xc0a80101
    0300.0250.1.1 169.254.169.254 169.254.0.1 2852039166 0xa9fea9fe 0251.0376.0251.0376 169.254.43518 169.16689662
    100.64.0.1 100.100.100.200 100.127.255.255 192.0.0.1 192.0.0.9 192.0.0.10 192.0.0.192 192.0.2.1 192.88.99.1
    198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 232.1.1.1 239.255.255.250 240.0.0.1 255.255.255.255
    4294967295 168.63.129.16
"""
_V6 = """
    ::1 :: ::2 0:0:0:0:0:0:0:1 ::ffff:127.0.0.1 ::ffff:7f00:1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0.0.0.0
    ::ffff:0:127.0.0.1 ::127.0.0.1 fe80::1 fe80::1%25lo fec0::1 feff::1 fc00::1 fd00::1 fd00:ec2::254 ff02::1 ff0e::1
    2002:7f00:1:: 2002:a9fe:a9fe::1 2002:808:808::1 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:10::1 2001:20::1
    2001:db8::1 3fff::1 64:ff9b::7f00:1 64:ff9b::127.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b:1::1 64:ff9b:1::7f00:1 100::1
    5f00::1 4000::1
"""
V4, V6 = _V4.split(), _V6.split()
# Names, and what they resolve to.
NAMES = {
    "localhost": ["127.0.0.1"],
    "localhost.": ["::1", "127.0.0.1"],
    "LOCALHOST": ["127.0.0.1"],
    "sub.localhost": ["::1"],
    "localtest.example": ["127.0.0.1"],
    "127.0.0.1.nip.example": ["127.0.0.1"],
    "metadata.internal": ["169.254.169.254"],
    "metadata": ["169.254.169.254"],
    "kubernetes.default.svc": ["10.96.0.1"],
    "printer": ["192.168.1.20"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "teredo.example": ["2001::1"],
    "six-to-four.example": ["2002:7f00:1::1"],
    "site-local.example": ["fec0::1"],
    "scoped.example": ["fe80::1%lo"],
    "nat64.example": ["64:ff9b::7f00:1"],
    "any.example": ["0.0.0.0"],
    "two.example": ["10.0.0.1", "10.0.0.2"],
    "trailing.example.": ["127.0.0.1"],
    "xn--bcher-kva.example": ["127.0.0.1"],
    "under_score.example": ["127.0.0.1"],
    "not-an-address.example": ["nonsense"],
}
# `PORT` is that of a server on this machine.
URLS = [
    "https://user@127.0.0.1:PORT/", "https://user:password@127.0.0.1:PORT/", "https://user:password@example.com/",
    "https://example.com@127.0.0.1:PORT/", "https://:@127.0.0.1:PORT/", "https://127.0.0.1:PORT#@example.com/",
    "https://127.0.0.1:PORT?@example.com/", "https://example.com%40127.0.0.1:PORT/",
    "https://example.com\\@127.0.0.1:PORT/", "https://127.0.0.1:PORT\\@example.com/", "ftp://127.0.0.1:PORT/",
    "gopher://127.0.0.1:PORT/", "file:///etc/passwd", "file://127.0.0.1/etc/passwd", "ws://127.0.0.1:PORT/",
    "unix:///var/run/docker.sock", "http+unix://%2Fvar%2Frun%2Fdocker.sock/", "javascript:alert(1)", "data:,x",
    "//127.0.0.1:PORT/", "127.0.0.1:PORT", "https:127.0.0.1:PORT", "https:/127.0.0.1:PORT/", "https:///127.0.0.1:PORT/",
    "https://127.0.0.1:PORT\t/", "\thttps://127.0.0.1:PORT/", "https://127.0.0.1 :PORT/", "https://127.0.0.1%00:PORT/",
    "https://127.0.0.1\r\nhost:example.com/", "https://127.0.0.1%0d%0a:PORT/", "https://[::1:PORT/",
    "https://[127.0.0.1]:PORT/", "https://1.2.3.4.5/", "https://256.256.256.256/", "https://127.0.0.1:0/",
    "https://127.0.0.1:65536/", "https://127.0.0.1:-1/", "https://①②⑦.⓪.⓪.①:PORT/", "https://１２７.０.０.１:PORT/",
    "https://127。0。0。1:PORT/", "https://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:PORT/", "https://bücher.example:PORT/", "https://", "https://:PORT/",
    "https://.:PORT/", "https://..:PORT/", "", "https://" + "a" * MAX_URL + ".example/",
]  # fmt: skip
CORPUS = [
    *(f"https://{host}:PORT/" for host in V4),
    *(f"https://[{host}]:PORT/" for host in V6),
    *(f"https://{host}:PORT/" for host in NAMES),
    *URLS,
    *(f"http://{host}:PORT/" for host in ("127.0.0.1", "169.254.169.254", "localhost", "2130706433", "[::1]")),
]


def resolve(host: str, port: int) -> Sequence[str]:
    """Names as in `NAMES`. Numbers as the operating system reads them."""
    if host in NAMES:
        return NAMES[host]
    if re.fullmatch(r"[0-9a-fA-FxX.]+", host):
        return resolve_host(host, port)
    raise socket.gaierror(socket.EAI_NONAME, "unknown name")


_connects: list[Any] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and _connects is not None and arguments[0].family != socket.AF_UNIX:
        _connects.append(arguments[1])


@contextmanager
def recorded_connects() -> Iterator[list[Any]]:
    """Record the address of every connection that this process tries to open."""
    global _connects
    if _audit not in _installed:
        sys.addaudithook(_audit)  # for good
        _installed.append(_audit)
    _connects = []
    try:
        yield _connects
    finally:
        _connects = None


_installed: list[Any] = []


def test_the_corpus_is_large() -> None:
    assert len(set(CORPUS)) >= 120


async def test_a_connection_is_recorded() -> None:
    """Otherwise the tests below would prove nothing."""
    async with receiving() as receiver:
        with recorded_connects() as connects:
            async with open_client(LOCAL) as client:
                await post(client, receiver.url)
        assert connects == [("127.0.0.1", receiver.port)]
        assert receiver.connections == 1


async def test_no_url_of_the_corpus_is_connected_to() -> None:
    policy = AddressPolicy(allow_http=True)
    async with receiving() as receiver, receiving(host="::1") as second, open_client(policy, resolve) as client:
        sender = Sender(client, policy)
        with recorded_connects() as connects:
            for port in (receiver.port, second.port):
                for url in CORPUS:
                    outcome, result = await sender.send(delivery(url.replace("PORT", str(port))))
                    assert result in (TryResult.FORBIDDEN, TryResult.UNREACHABLE), url
                    assert outcome.status is None
                    assert connects == [], url
        assert receiver.connections == second.connections == 0


async def test_a_connection_is_refused_even_if_a_url_was_not_checked() -> None:
    """The address is checked where the connection is opened, whatever the URL looks like."""
    async with receiving() as receiver, open_client(AddressPolicy(allow_http=True), resolve) as client:
        with recorded_connects() as connects:
            for url in CORPUS:
                with pytest.raises((SSRFProtectionError, httpcore.ConnectError, httpx.InvalidURL, ValueError)):
                    await post(client, url.replace("PORT", str(receiver.port)))
                assert connects == [], url
        assert receiver.connections == 0


async def test_an_address_that_changes_after_its_check_is_not_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: a name resolves to an allowed address, and then to another one."""
    monkeypatch.setattr("api.webhooks.address_guard.RESOLVED_S", 0.0)
    answers = iter([["127.0.0.2"], ["127.0.0.1"]])
    policy = AddressPolicy(allow_private=[ip_network("127.0.0.2/32")], allow_http=True)
    async with (
        receiving(status(200, "connection: close"), host="127.0.0.2") as receiver,
        open_client(policy, lambda *_: next(answers)) as client,
    ):
        url = f"http://rebinding.example:{receiver.port}/"
        with recorded_connects() as connects:
            assert await post(client, url) == 200
            with pytest.raises(SSRFProtectionError):
                await post(client, url)
        assert connects == [("127.0.0.2", receiver.port)], "and that is the address which was checked"


async def test_a_refused_address_among_others_ends_the_attempt() -> None:
    policy = AddressPolicy(allow_private=[ip_network("127.0.0.2/32")], allow_http=True)
    async with receiving() as refused, open_client(policy, lambda *_: ["127.0.0.1", "127.0.0.2"]) as client:
        with recorded_connects() as connects, pytest.raises(SSRFProtectionError):
            await post(client, f"http://mixed.example:{refused.port}/")
        assert connects == []


async def test_the_next_address_is_tried_if_one_does_not_work() -> None:
    async with (
        receiving(host="127.0.0.2") as receiver,
        open_client(LOCAL, lambda *_: ["127.0.0.3", "127.0.0.2"]) as client,
    ):
        assert await post(client, f"http://two.example:{receiver.port}/") == 200
        assert receiver.requests[0].headers["host"] == f"two.example:{receiver.port}"


async def test_an_address_that_drops_packets_does_not_take_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of IPv6 do where it is not routed. The last address has the time that is left."""
    monkeypatch.setattr("api.webhooks.address_guard.CONNECT_S", 0.01)
    tried: list[tuple[str, float | None]] = []

    class Network(httpcore.AsyncNetworkBackend):
        async def connect_tcp(
            self,
            host: str,
            port: int,
            timeout: float | None = None,
            local_address: str | None = None,
            socket_options: Any = None,
        ) -> httpcore.AsyncNetworkStream:
            tried.append((host, timeout))
            if host == "2001:db8::1":
                try:
                    async with asyncio.timeout(timeout):
                        await asyncio.Event().wait()
                except TimeoutError as error:
                    raise httpcore.ConnectTimeout from error
            return httpcore.AsyncMockStream([])

    resolver = Resolver(lambda *_: ["2001:db8::1", "198.51.100.1"])
    try:
        stream = await _ResolvingBackend(Network(), resolver).connect_tcp("two.example", 443)
    finally:
        resolver.close()
    assert isinstance(stream, httpcore.AsyncMockStream)
    assert tried == [("2001:db8::1", 0.01), ("198.51.100.1", None)]


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(code: int) -> None:
    policy = AddressPolicy(allow_private=[ip_network("127.0.0.2/32")], allow_http=True)
    async with (
        receiving() as target,
        receiving(status(code, f"location: http://127.0.0.1:{target.port}/"), host="127.0.0.2") as receiver,
        open_client(policy) as client,
    ):
        outcome, result = await Sender(client, policy).send(delivery(f"http://127.0.0.2:{receiver.port}/"))
        assert (result, outcome.status, outcome.state) == (TryResult.REDIRECT, code, "pending")
        assert outcome.error is not None
        assert "redirects are not followed" in outcome.error
        assert target.connections == 0


async def test_the_environments_proxy_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiving() as proxy, receiving() as receiver:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        async with open_client(LOCAL) as client:
            await post(client, receiver.url)
        assert (proxy.connections, receiver.connections) == (0, 1)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001:830::200e", "64:ff9b::808:808",
     "::ffff:8.8.8.8"],
)  # fmt: skip
def test_public_addresses_are_allowed(address: str) -> None:
    assert AddressPolicy().allows(ip_address(address))


def test_private_networks_are_allowed_by_a_setting() -> None:
    policy = AddressPolicy(
        allow_private=[ip_network("10.1.0.0/16"), ip_network("fd00:1::/64"), ip_network("0.0.0.0/0")]
    )
    allowed = ["10.1.2.3", "::ffff:10.1.2.3", "fd00:1::5", "127.0.0.1"]
    assert all(policy.allows(ip_address(address)) for address in allowed)
    refused = ["fd00:2::5", "::1", "0.0.0.0", "224.0.0.1"]
    assert not any(policy.allows(ip_address(address)) for address in refused)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.com/", "must begin with https://"),
        ("https://user:secret@example.com/", "must not contain credentials"),
        ("https://10.0.0.1/", "not public"),
        ("https://2130706433/", "usual form"),
        ("https://example.com/" + "x" * MAX_URL, "at most 2048"),
        ("https://exa mple.com/", "spaces"),
    ],
)
def test_the_reason_of_a_refusal_quotes_nothing(url: str, reason: str) -> None:
    with pytest.raises(RefusedUrl, match=reason) as error:
        AddressPolicy().check_url(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["https://example.com/a?b=c", "https://example.com.:8443/", "https://bücher.example/", "https://8.8.8.8/"]
)
def test_urls_of_public_hosts_are_accepted(url: str) -> None:
    assert AddressPolicy().check_url(url).scheme == "https"


async def test_a_dns_server_that_hangs_does_not_occupy_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever submits jobs can name any number of hosts of a domain whose server does not answer."""
    monkeypatch.setattr("api.webhooks.address_guard.RESOLVER_THREADS", 3)
    monkeypatch.setattr("api.webhooks.address_guard.THREADS_OF_DOMAIN", 2)
    answers = threading.Event()
    hung: list[str] = []

    def hang_for_one(host: str, port: int) -> Sequence[str]:
        if host.endswith(".hangs.example"):
            hung.append(host)
            answers.wait()
        return ["127.0.0.1"]

    resolver = Resolver(hang_for_one)
    try:
        waiting = [asyncio.create_task(resolver.addresses(f"{name}.hangs.example", 443)) for name in "abcd"]
        async with asyncio.timeout(10):
            for name in "xyz":
                assert await resolver.addresses(f"{name}.works.example", 443) == ["127.0.0.1"]
        # A look-up that nobody waits for any more still holds its place; one that waits for a place gives up.
        await cancel_and_wait(*waiting[:3])
        assert len(hung) == 2
        answers.set()
        assert await waiting[3] == ["127.0.0.1"]
        assert sorted(hung) == ["a.hangs.example", "b.hangs.example", "d.hangs.example"]
    finally:
        answers.set()
        resolver.close()


async def test_a_host_is_looked_up_once_for_concurrent_requests() -> None:
    lookups: list[str] = []

    def count(host: str, port: int) -> Sequence[str]:
        lookups.append(host)
        return ["127.0.0.1"]

    resolver = Resolver(count)
    try:
        found = await asyncio.gather(*(resolver.addresses("a.example", 80) for _ in range(5)))
        assert found == [["127.0.0.1"]] * 5
        await resolver.addresses("a.example", 80)
        await resolver.addresses("127.0.0.1", 80)
        assert lookups == ["a.example"]
    finally:
        resolver.close()
