"""Errors of real servers are classified as outages, which are retried, or faults."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest
import sqlalchemy.exc
import uvloop
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.postgres.engine import connect
from shared.postgres.prepared import Prepared
from shared.redis.connection import connect_redis
from shared.runtime.outages import is_database_outage, is_outage, is_redis_outage
from tests.support.ports import free_port
from tests.support.waiting import eventually

ErrorOf = Callable[[AsyncEngine, str], Awaitable[BaseException]]


async def by_sqlalchemy(engine: AsyncEngine, statement: str) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(statement))


async def by_the_driver(engine: AsyncEngine, statement: str) -> None:
    await Prepared(text(statement)).run(engine, {})


@pytest.fixture(params=[by_sqlalchemy, by_the_driver])
def database_error(request: pytest.FixtureRequest) -> ErrorOf:
    """Returns the error of a failing statement."""

    async def error_of(engine: AsyncEngine, statement: str) -> BaseException:
        with pytest.raises((sqlalchemy.exc.SQLAlchemyError, asyncpg.InterfaceError, OSError)) as caught:
            await request.param(engine, statement)
        error: BaseException = caught.value
        return error

    return error_of


@pytest.fixture
async def refusing(request: pytest.FixtureRequest) -> AsyncIterator[AsyncEngine]:
    """An engine for a server that replies to each connection with an `ErrorResponse` of PostgreSQL's protocol."""
    state, message = request.param

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)  # SSLRequest
        writer.write(b"N")
        await reader.read(1024)
        fields = f"SFATAL\0VFATAL\0C{state}\0M{message}\0\0".encode()
        writer.write(b"E" + (4 + len(fields)).to_bytes(4) + fields)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        engine = connect(f"postgresql+asyncpg://nobody@127.0.0.1:{port}/none")
        yield engine
        await engine.dispose()


@pytest.mark.parametrize(
    "refusing",
    [
        ("57P03", "the database system is starting up"),
        ("57P03", "the database system is shutting down"),
        ("53300", "sorry, too many clients already"),
        ("08006", "connection failure"),
        ("28P01", "password authentication failed"),  # a password is being changed
        ("28000", "role is not permitted to log in"),
        ("3D000", 'database "none" does not exist'),  # it is being restored
    ],
    indirect=True,
)
async def test_a_server_that_refuses_connections_temporarily_is_an_outage(
    refusing: AsyncEngine, database_error: ErrorOf
) -> None:
    assert is_database_outage(await database_error(refusing, "SELECT 1"))


async def test_a_refused_connection_is_an_outage(database_error: ErrorOf) -> None:
    engine = connect(f"postgresql+asyncpg://nobody@127.0.0.1:{free_port()}/none")
    assert is_database_outage(await database_error(engine, "SELECT 1"))
    await engine.dispose()


async def test_several_servers_without_a_primary_are_an_outage(database_url: str, database_error: ErrorOf) -> None:
    """All of them are standbys until one is promoted. Here no server is what the URL asks for."""
    engine = connect(f"{database_url}&target_session_attrs=standby")
    assert is_database_outage(await database_error(engine, "SELECT 1"))
    await engine.dispose()


async def test_an_inconsistent_connection_is_an_outage(
    database: AsyncEngine, database_error: ErrorOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncpg may lose track of a connection that the server closes while it is used; the statement is not at fault."""

    async def inconsistent(*_: object, **__: object) -> None:
        raise asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress")

    for method in ("fetch", "prepare"):
        monkeypatch.setattr(asyncpg.Connection, method, inconsistent)
    assert is_database_outage(await database_error(database, "SELECT 1"))


async def test_a_connection_that_is_closed_while_it_is_set_up_is_an_outage(
    database_url: str, database_error: ErrorOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is stopped between its reply to the login and SQLAlchemy's first settings of the connection."""
    set_type_codec = asyncpg.Connection.set_type_codec

    async def closed(connection: asyncpg.Connection, *arguments: Any, **options: Any) -> None:
        connection.terminate()
        await set_type_codec(connection, *arguments, **options)

    monkeypatch.setattr(asyncpg.Connection, "set_type_codec", closed)
    engine = connect(database_url)
    assert is_database_outage(await database_error(engine, "SELECT 1"))
    await engine.dispose()


async def test_a_terminated_backend_is_an_outage(database: AsyncEngine, database_error: ErrorOf) -> None:
    assert is_database_outage(await database_error(database, "SELECT pg_terminate_backend(pg_backend_pid())"))


async def test_an_exhausted_pool_is_an_outage(database_url: str, database_error: ErrorOf) -> None:
    engine = connect(database_url, pool_size=1)
    async with engine.connect():
        error = await database_error(engine, "SELECT 1")
    await engine.dispose()
    assert isinstance(error, sqlalchemy.exc.TimeoutError)
    assert is_database_outage(error)


@pytest.mark.parametrize(
    "statement",
    [
        "SELEKT 1",
        "SELECT * FROM no_such_table",
        "SELECT 1 / 0",
        "SELECT 'x'::int",
        "INSERT INTO jobs (id) VALUES ('job_x')",
    ],
)
async def test_a_failing_statement_is_a_fault(database: AsyncEngine, database_error: ErrorOf, statement: str) -> None:
    assert not is_outage(await database_error(database, statement))


async def test_a_refused_connection_to_redis_is_an_outage() -> None:
    async with Redis.from_url(f"redis://127.0.0.1:{free_port()}/0") as unreachable:
        with pytest.raises((RedisError, OSError)) as caught:
            await unreachable.ping()
    assert is_redis_outage(caught.value)


REPLIES = [
    "READONLY You can't write against a read only replica.",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
    "LOADING Valkey is loading the dataset in memory",
    "MISCONF Errors writing to the AOF file: No space left on device",
    "MISCONF Valkey is configured to save RDB snapshots, but it's currently unable to persist to disk.",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "OOM command not allowed when used memory > 'maxmemory'. script: 5d2a, on @user_script:48.",
    "NOAUTH Authentication required.",
    "WRONGPASS invalid username-password pair or user is disabled.",
    "NOPERM User worker has no permissions to run the 'xadd' command",
    "NOREPLICAS Not enough good replicas to write.",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "CLUSTERDOWN The cluster is down",
    "BUSY Valkey is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "NOSCRIPT No matching script.",
    "EXECABORT Transaction discarded because of: READONLY You can't write against a read only replica.",
    "EXECABORT Transaction discarded because of previous errors.",
    "ERR Error running script (call to f_5d2a): @user_script:48: -READONLY You can't write against a replica.",
    "ERR max number of clients reached",
    "ERR max number of clients + cluster connections reached",
    "ERR invalid password",
    "ERR AUTH <password> called without any password configured for the default user. "
    "Are you sure your configuration is correct?",
    "DENIED Redis is running in protected mode because protected mode is enabled",
]


@pytest.fixture
async def replying(request: pytest.FixtureRequest) -> AsyncIterator[Redis]:
    """A client of a server that replies to each command with an error."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            writer.write(f"-{request.param}\r\n".encode())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        client = connect_redis(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0")
        yield client
        await client.aclose()


@pytest.mark.parametrize("replying", REPLIES, indirect=True)
async def test_a_redis_server_that_refuses_commands_is_an_outage(replying: Redis) -> None:
    """By any command, and by a script."""
    for call in (replying.set("key", "x"), replying.register_script("return 1")(), replying.ping()):
        with pytest.raises((RedisError, OSError)) as caught:
            await call
        assert is_redis_outage(caught.value), repr(caught.value)


@pytest.mark.parametrize(
    "replying",
    ["WRONGTYPE Operation against a key holding the wrong kind of value", "ERR syntax error", "BUSYGROUP exists"],
    indirect=True,
)
async def test_a_redis_server_that_rejects_a_command_is_not(replying: Redis) -> None:
    with pytest.raises(RedisError) as caught:
        await replying.ping()
    assert not is_outage(caught.value)


def test_a_connection_that_redis_has_just_closed_is_an_outage() -> None:
    """On uvloop, on which API and workers run: a command that is sent before the loop has noticed the loss."""

    async def send_on_a_lost_connection() -> None:
        writers: list[asyncio.StreamWriter] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            while await reader.read(4096):
                writer.write(b"+OK\r\n" * 3)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            client = connect_redis(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0")
            connection: Any = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]

            async def is_closing() -> bool:
                return bool(connection._writer.transport.is_closing())

            linger = struct.pack("ii", 1, 0)  # so that the server resets the connection
            writers[0].get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writers[0].transport.abort()
            await eventually(is_closing, "the connection is closed")
            try:
                await connection.send_command("PING")
                await connection.read_response()
            finally:
                await client.aclose()

    with pytest.raises(Exception, match="clos") as caught:
        uvloop.run(send_on_a_lost_connection())
    assert is_redis_outage(caught.value), repr(caught.value)


async def test_connections_opened_before_a_switch_to_a_standby_are_replaced(database_url: str) -> None:
    """A server that has become read-only keeps its connections; all of the pool are opened again, not one by one."""
    engine = connect(database_url, pool_size=3)
    pids = set()
    async with engine.connect() as one, engine.connect() as two, engine.connect() as three:
        for connection in (one, two, three):
            pids.add((await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one())
            await connection.execute(text("SET default_transaction_read_only = on"))
    with pytest.raises(sqlalchemy.exc.DBAPIError) as caught:
        await by_the_driver(engine, "DELETE FROM jobs")
    assert is_database_outage(caught.value)
    for _ in range(3):
        await by_the_driver(engine, "DELETE FROM jobs")
    async with engine.connect() as one, engine.connect() as two, engine.connect() as three:
        for connection in (one, two, three):
            assert (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one() not in pids
            await connection.execute(text("SET default_transaction_read_only = on"))
        with pytest.raises(sqlalchemy.exc.DBAPIError):
            await one.execute(text("DELETE FROM jobs"))
    for _ in range(3):
        await by_sqlalchemy(engine, "DELETE FROM jobs")
    await engine.dispose()


async def test_a_failing_redis_command_is_a_fault(redis: Redis) -> None:
    await redis.set("text", "x")
    with pytest.raises(RedisError) as caught:
        await redis.sadd("text", "y")
    assert not is_outage(caught.value)


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), AssertionError(), RuntimeError("x")])
def test_python_errors_are_faults(error: Exception) -> None:
    assert not is_outage(error)
