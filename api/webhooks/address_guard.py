"""Guards the requests of webhooks: they reach public addresses only (server-side request forgery, SSRF).

A client of the API chooses the URL, and whoever runs the DNS of its host chooses the address. So the address is what
is checked, where the connection is opened: a host is resolved, each address is checked, and the connection is opened to
the very address that was checked. No packet is sent to an address that is refused.

`httpx_secure` checks the address and connects to it. It is given only addresses, never names: it would find the address
of a name by connecting to it.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any
from weakref import WeakValueDictionary

import certifi
import httpcore
import httpx
from httpx_secure import httpx_ssrf_protection

from api.webhooks.http_client import HttpClient

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
# Resolves a host to addresses, in the order in which they are tried. Raises OSError.
Resolve = Callable[[str, int], Sequence[str]]

MAX_URL = 2048
# How long a resolved host is not looked up again. Short: a host that moves must be followed.
RESOLVED_S = 5.0
# A DNS server that does not answer occupies a thread for each of its hosts, but no more than this of them: a client can
# name any number of hosts of a domain, and those of others must be found meanwhile.
RESOLVER_THREADS = 32
THREADS_OF_DOMAIN = 4
_MAX_RESOLVED = 1024
# How long one of several addresses of a host is tried, before the next one is.
CONNECT_S = 2.0

# The only globally routed unicast addresses of IPv6. All special ones outside of it, such as fec0::/10, are refused.
_GLOBAL_V6 = IPv6Network("2000::/3")
# Translates to the IPv4 address at its end, where the network has such a gateway.
_NAT64 = IPv6Network("64:ff9b::/96")
# Not reachable for everyone, or addresses in which others are embedded, although `is_global` may be true.
_REFUSED: tuple[Network, ...] = (
    IPv4Network("192.0.0.0/24"),  # protocol assignments
    IPv4Network("192.88.99.0/24"),  # relays of 6to4
    IPv4Network("168.63.129.16/32"),  # Azure's host, seen from its virtual machines
    IPv6Network("2001::/23"),  # protocol assignments, with Teredo in 2001::/32
    IPv6Network("2002::/16"),  # 6to4
    IPv6Network("3fff::/20"),  # documentation
)
# A host whose last label is a number is an IPv4 address in a form that resolvers accept, such as 0x7f.1 or 2130706433.
_NUMERIC = re.compile(r"(.*\.)?(\d+|0[xX][0-9a-fA-F]*)\.?")


class RefusedUrl(ValueError):
    """Webhooks are not sent to this URL. The message says why; it quotes nothing of the URL."""


class AddressPolicy:
    """Which URLs and addresses webhooks are sent to."""

    def __init__(self, *, allow_private: Iterable[Network] = (), allow_http: bool = False) -> None:
        """`allow_private`: networks that are allowed although they are not public. `allow_http`: also without TLS."""
        self._allowed = tuple(allow_private)
        self._schemes = ("https", "http") if allow_http else ("https",)

    def check_url(self, url: str) -> httpx.URL:
        """Check what a URL itself shows, when it is stored and before each request. Its host is not resolved.

        Raises:
            RefusedUrl: it is not sent to.
        """
        if len(url) > MAX_URL:
            raise RefusedUrl(f"must have at most {MAX_URL} characters")
        if re.search(r"[\x00-\x20\x7f\\]", url):
            raise RefusedUrl("must not contain spaces, control characters or backslashes")
        try:
            parsed = httpx.URL(url)
            host = parsed.host
        except (httpx.InvalidURL, ValueError, UnicodeError):
            raise RefusedUrl("must be a URL such as https://example.com/webhook") from None
        if parsed.scheme not in self._schemes:
            raise RefusedUrl("must begin with https://" + (" or http://" if "http" in self._schemes else ""))
        if parsed.userinfo or "@" in parsed.netloc.decode("ascii", "replace"):
            raise RefusedUrl("must not contain credentials; the signature authenticates the request")
        if not host or parsed.port == 0:
            raise RefusedUrl("must name a host, and a port other than 0 if any")
        address = _literal(host)
        if address is None and (_NUMERIC.fullmatch(host) or "%" in host or ":" in host):
            raise RefusedUrl("must name a host, or an IP address in its usual form")
        if address is not None and not self.allows(address):
            raise RefusedUrl("must not name an address that is not public")
        return parsed

    def allows(self, address: Address) -> bool:
        """Whether connections to this address are allowed."""
        if isinstance(address, IPv6Address):
            if address.scope_id is not None:
                return False
            # The operating system connects to the IPv4 address.
            if address.ipv4_mapped is not None:
                return self.allows(address.ipv4_mapped)
            if address in _NAT64:
                return self.allows(IPv4Address(address.packed[-4:]))
        if address.is_multicast or address.is_unspecified:
            return False
        if any(address in network for network in self._allowed if network.version == address.version):
            return True
        if isinstance(address, IPv6Address) and address not in _GLOBAL_V6:
            return False
        is_refused = any(address in network for network in _REFUSED if network.version == address.version)
        return address.is_global and not is_refused


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def resolve_host(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, from the operating system's resolver."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Resolver:
    """Resolves hosts beside the event loop, in threads of its own: a DNS server that hangs delays nothing else.

    Concurrent look-ups of a host are one, and its addresses are remembered for a short time.
    """

    def __init__(self, resolve: Resolve = resolve_host) -> None:
        self._resolve = resolve
        self._threads = ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="webhook-dns")
        # The places of each domain, which look-ups hold: also those that nobody waits for any more.
        self._places: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._running: dict[tuple[str, int], asyncio.Future[Sequence[str]]] = {}
        self._known: dict[tuple[str, int], tuple[float, Sequence[str]]] = {}

    async def addresses(self, host: str, port: int) -> Sequence[str]:
        """The addresses of a host.

        Raises:
            OSError: it has none.
        """
        if _literal(host) is not None:
            return [host]
        key = host, port
        if self._is_known(key):
            return self._known[key][1]
        if key not in self._running:
            domain = ".".join(host.rstrip(".").split(".")[-2:])
            places = self._places.setdefault(domain, asyncio.Semaphore(THREADS_OF_DOMAIN))
            await places.acquire()
            # Others may have looked it up meanwhile.
            if self._is_known(key) or key in self._running:
                places.release()
                return await self.addresses(host, port)
            running = asyncio.get_running_loop().run_in_executor(self._threads, self._resolve, host, port)
            self._running[key] = running
            running.add_done_callback(lambda done: self._resolved(key, done, places))
        return await asyncio.shield(self._running[key])

    def _is_known(self, key: tuple[str, int]) -> bool:
        return key in self._known and time.monotonic() - self._known[key][0] < RESOLVED_S

    def _resolved(self, key: tuple[str, int], done: asyncio.Future[Sequence[str]], places: asyncio.Semaphore) -> None:
        places.release()
        self._running.pop(key, None)
        if not done.cancelled() and done.exception() is None:
            if len(self._known) >= _MAX_RESOLVED:
                self._known.clear()
            self._known[key] = time.monotonic(), done.result()

    def close(self) -> None:
        """End its threads, without waiting for look-ups."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class _ResolvingBackend(httpcore.AsyncNetworkBackend):
    """Opens connections through another backend, which is given an address instead of a name."""

    def __init__(self, inner: httpcore.AsyncNetworkBackend, resolver: Resolver) -> None:
        self._inner = inner
        self._resolver = resolver

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._resolver.addresses(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError("the host was not found") from error
        failure: Exception = httpcore.ConnectError("the host has no address")
        for number, address in enumerate(addresses, 1):
            # One that drops packets, as IPv6 does where it is not routed, must not take all the time of a try.
            limit_s = timeout if number == len(addresses) else CONNECT_S
            try:
                return await self._inner.connect_tcp(
                    address, port, timeout=limit_s, local_address=local_address, socket_options=socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error  # the next address may work; one that is refused ends the attempt
        raise failure

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


def _guarded(policy: AddressPolicy, tls: ssl.SSLContext) -> httpcore.AsyncNetworkBackend:
    """A backend that connects to allowed addresses only, and is given addresses only."""
    client = httpx.AsyncClient(trust_env=False, verify=tls)
    httpx_ssrf_protection(
        client,
        check_globally_reachable=False,  # the policy checks it, and has exceptions
        custom_validator=lambda _host, address, _port: policy.allows(address),
    )
    # `httpx_secure` guards the connections of a client; this is where it does, and all that is used of the client.
    pool: Any = client._transport._pool  # type: ignore[attr-defined]
    backend: httpcore.AsyncNetworkBackend = pool._network_backend
    return backend


@asynccontextmanager
async def open_client(policy: AddressPolicy, resolve: Resolve = resolve_host) -> AsyncIterator[HttpClient]:
    """The client of webhooks, which connects to allowed addresses only.

    A request to a refused address raises `httpx_secure.SSRFProtectionError`.
    """
    certificates = ssl.create_default_context(cafile=certifi.where())
    certificates.load_default_certs()  # and those that the operator has installed
    certificates.set_alpn_protocols(["http/1.1"])
    resolver = Resolver(resolve)
    client = HttpClient(_ResolvingBackend(_guarded(policy, certificates), resolver), certificates)
    try:
        yield client
    finally:
        await client.aclose()
        resolver.close()
