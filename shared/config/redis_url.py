"""Redis URLs: TCP, TLS, Unix sockets and Sentinel.

    redis://user:password@host:6379/0
    rediss://user:password@host:6379/0?ssl_ca_certs=FILE&ssl_certfile=FILE&ssl_keyfile=FILE
    unix://user:password@/run/valkey.sock?db=0
    redis+sentinel://user:password@host:26379,host:26379/0?service_name=mymaster
    rediss+sentinel://...                               TLS to the sentinels and to the servers

One parser for our client and for Celery's, which know different forms of these.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from shared.config.postgres_url import check_file

FORM = "must be a Redis URL: redis://host:port/0"
PORT, SENTINEL_PORT = 6379, 26379
_SCHEMES = ("redis", "rediss", "unix", "redis+socket", "redis+sentinel", "rediss+sentinel")
_CERT_REQS = ("required", "optional", "none")
_TLS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_keyfile_password", "ssl_cert_reqs", "ssl_check_hostname")
_SENTINEL = ("service_name", "sentinel_username", "sentinel_password")


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A parsed URL. `hosts` are the sentinels if there is a `service_name`; `path` is a Unix socket."""

    hosts: tuple[tuple[str, int], ...] = ()
    path: str | None = None
    db: int = 0
    username: str | None = None
    password: str | None = None
    # Arguments of redis-py's TLS connections; None without TLS.
    tls: dict[str, Any] | None = None
    service_name: str | None = None
    # Credentials of the sentinels.
    sentinel_login: dict[str, str] = field(default_factory=dict)

    @property
    def login(self) -> dict[str, str | None]:
        return {"username": self.username, "password": self.password}

    def celery_settings(self) -> dict[str, Any]:
        """The settings of Celery for this address: `broker_url`, `broker_use_ssl`, and transport options."""
        userinfo = ""
        if self.password is not None or self.username:
            userinfo = f"{quote(self.username or '', safe='')}:{quote(self.password or '', safe='')}@"
        if self.path is not None:
            return {"broker_url": f"redis+socket://{userinfo}{quote(self.path)}?virtual_host={self.db}"}
        settings: dict[str, Any] = {"broker_use_ssl": self.tls} if self.tls is not None else {}
        scheme = "rediss" if self.tls is not None else "redis"
        options: dict[str, Any] = {}
        if self.service_name is not None:
            scheme = "sentinel"
            options = {"master_name": self.service_name, "sentinel_kwargs": self.sentinel_arguments()}
        urls = [f"{scheme}://{userinfo}{_bracketed(host)}:{port}/{self.db}" for host, port in self.hosts]
        return {**settings, "broker_url": ";".join(urls), "broker_transport_options": options}

    def sentinel_arguments(self) -> dict[str, Any]:
        """redis-py's arguments of connections to sentinels. They are asked one after the other, often for each call."""
        tls = {"ssl": True, **self.tls} if self.tls is not None else {}
        return {**self.sentinel_login, **tls, "socket_connect_timeout": 0.5, "socket_timeout": 1.0}


def parse_redis_url(url: str) -> RedisAddress:
    """Parse and check a URL.

    Raises:
        ValueError: it is not a Redis URL, or one of its parameters is unknown or invalid.
    """
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or "://" not in url:
        raise ValueError(FORM)
    userinfo, _, hosts = parts.netloc.rpartition("@")
    username, _, password = userinfo.partition(":")
    parameters: dict[str, Any] = dict(parse_qsl(parts.query, keep_blank_values=True))
    username = parameters.pop("username", None) or unquote(username)
    login: dict[str, Any] = {
        "username": username or None,
        "password": parameters.pop("password", None) or unquote(password) or None,
    }
    if parts.scheme in ("unix", "redis+socket"):
        database = parameters.pop("db", None) or parameters.pop("virtual_host", "0")
        _refuse_unknown(parameters, ("db",))
        if not parts.path or hosts:
            raise ValueError("must be a Unix socket's URL: unix:///path/of/the/socket?db=0")
        return RedisAddress(path=unquote(parts.path), db=_database(database), **login)
    sentinel = parts.scheme.endswith("+sentinel")
    tls = _tls(parameters) if parts.scheme.startswith("rediss") else None
    database = parameters.pop("db", None) or parts.path.strip("/") or "0"
    service_name = parameters.pop("service_name", None) if sentinel else None
    if sentinel and not service_name:
        raise ValueError("requires ?service_name=..., the name by which the sentinels know the primary")
    sentinel_login = {
        name.removeprefix("sentinel_"): parameters.pop(name)
        for name in ("sentinel_username", "sentinel_password")
        if sentinel and name in parameters
    }
    known = ("db", "username", "password", *(_TLS if tls is not None else ()), *(_SENTINEL if sentinel else ()))
    _refuse_unknown(parameters, known)
    addresses = tuple(_address(host, SENTINEL_PORT if sentinel else PORT) for host in hosts.split(","))
    if len(addresses) > 1 and not sentinel:
        raise ValueError("has several hosts; those of sentinels are written as redis+sentinel://")
    return RedisAddress(
        hosts=addresses,
        db=_database(database),
        tls=tls,
        service_name=service_name,
        sentinel_login=sentinel_login,
        **login,
    )


def _tls(parameters: dict[str, Any]) -> dict[str, Any]:
    """redis-py's arguments for TLS: the server's certificate and name are verified unless the URL says otherwise."""
    found: dict[str, Any] = {name: parameters.pop(name) for name in _TLS if name in parameters}
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        check_file(name, found.get(name))
    found["ssl_cert_reqs"] = found.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    if found["ssl_cert_reqs"] not in _CERT_REQS:
        raise ValueError(f"ssl_cert_reqs must be one of {', '.join(_CERT_REQS)}")
    check_hostname = found.get("ssl_check_hostname", str(found["ssl_cert_reqs"] != "none")).lower()
    if check_hostname not in ("true", "false"):
        raise ValueError("ssl_check_hostname must be true or false")
    found["ssl_check_hostname"] = check_hostname == "true" and found["ssl_cert_reqs"] != "none"
    if ("ssl_certfile" in found) != ("ssl_keyfile" in found):
        raise ValueError("ssl_certfile and ssl_keyfile belong together")
    return found


def _refuse_unknown(parameters: dict[str, Any], known: tuple[str, ...]) -> None:
    for name in parameters:
        raise ValueError(f"unknown parameter {name!r}; known are {', '.join(known)}")


def _database(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(FORM)
    return int(text)


def _address(text: str, default_port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        port = parts.port
    except ValueError:
        raise ValueError(FORM) from None
    return unquote(parts.hostname or "") or "localhost", port or default_port


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else quote(host)
