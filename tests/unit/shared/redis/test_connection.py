"""Connections to Redis: packing of commands, and kinds of addresses."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection

from shared.redis.connection import connect_redis

COMMANDS = [
    ("PING",),
    ("XADD", "log", "1-0", b"e", b'{"text": "\xc3\xa4"}'),
    ("SET", "\u00fc\U0001f600", "\u00e4" * 7000, "PX", 250),
    ("EVALSHA", "0" * 40, 3, *(f"key {number}" for number in range(300)), 1.5, -7, b"\0\r\n"),
    ("CONFIG GET", "maxmemory"),
]


def connection_to(url: str) -> Any:
    pool: Any = connect_redis(url).connection_pool
    return pool.make_connection()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_commands_are_packed_as_redis_py_packs_them(command: tuple[bytes | str | int | float, ...]) -> None:
    connection = connection_to("redis://127.0.0.1:1/0")
    reference = Connection()
    assert b"".join(connection.pack_command(*command)) == b"".join(reference.pack_command(*command))
    both = [command, ("PING",)]
    assert b"".join(connection.pack_commands(both)) == b"".join(reference.pack_commands(both))


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("redis://:secret@host:6390/2", Connection),
        ("rediss://host:6379/0", SSLConnection),
        ("unix:///run/valkey.sock?db=1", UnixDomainSocketConnection),
    ],
)
def test_each_kind_of_address_is_supported(url: str, kind: type) -> None:
    assert isinstance(connection_to(url), kind)
