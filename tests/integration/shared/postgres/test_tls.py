"""libpq's TLS parameters in DATABASE_URL, over real TLS."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from shared.config.postgres_url import asyncpg_url
from shared.postgres.engine import connect
from shared.postgres.prepared import Prepared
from shared.runtime.outages import is_database_outage
from tests.support.database import migrate
from tests.support.ports import free_port
from tests.support.tls import Authority, tls_front


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@contextlib.contextmanager
def front(database_url: str, certificate: tuple[Path, Path], client_ca: Path | None = None) -> Iterator[str]:
    """The URL of the same database behind TLS, without parameters."""
    url = make_url(database_url)
    socket = Path(str(url.query["host"])) / ".s.PGSQL.5432"
    with tls_front(socket, certificate, client_ca=client_ca, postgres=True) as port:
        yield f"postgresql://postgres@localhost:{port}/{url.database}"


async def one(url: str) -> int:
    """Run a statement by SQLAlchemy and one by the driver."""
    engine = connect(asyncpg_url(url))
    try:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
        (row,) = await Prepared(text("SELECT 1 AS one")).run(engine, {})
    finally:
        await engine.dispose()
    return int(row.one)


async def test_the_modes_verify_as_much_as_libpq_does(database_url: str, authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path)
    with front(database_url, authority.sign("server")) as url:
        for parameters in (
            "sslmode=prefer",
            "sslmode=require",
            f"sslmode=verify-ca&sslrootcert={authority.ca}",
            f"sslmode=verify-full&sslrootcert={authority.ca}",
        ):
            assert await one(f"{url}?{parameters}") == 1, parameters
        for parameters in (
            "sslmode=disable",
            f"sslmode=require&sslrootcert={other.ca}",
            f"sslmode=verify-ca&sslrootcert={other.ca}",
            f"sslmode=verify-full&sslrootcert={other.ca}",
        ):
            with pytest.raises(Exception, match=r"(?i)certificate|no encryption") as caught:
                await one(f"{url}?{parameters}")
            assert is_database_outage(caught.value), "a certificate that has expired is replaced"
    with front(database_url, authority.sign("elsewhere", host="db.example")) as url:
        assert await one(f"{url}?sslmode=verify-ca&sslrootcert={authority.ca}") == 1
        with pytest.raises(Exception, match="certificate"):
            await one(f"{url}?sslmode=verify-full&sslrootcert={authority.ca}")


async def test_client_certificates(database_url: str, authority: Authority) -> None:
    certificate, key = authority.sign("client")
    with front(database_url, authority.sign("server"), client_ca=authority.ca) as url:
        verified = f"{url}?sslmode=verify-full&sslrootcert={authority.ca}"
        assert await one(f"{verified}&sslcert={certificate}&sslkey={key}") == 1
        with pytest.raises(Exception, match=r".*") as caught:
            await one(verified)
        assert is_database_outage(caught.value)


def test_migrations(database_url: str, authority: Authority) -> None:
    with front(database_url, authority.sign("server")) as url:
        migrate(f"{url}?sslmode=verify-full&sslrootcert={authority.ca}", "current")


async def test_the_server_that_accepts_writes_is_found_among_several(database_url: str, authority: Authority) -> None:
    """One that refuses connections is skipped; if none is a primary, that is an outage."""
    with front(database_url, authority.sign("server")) as url:
        host = f"localhost:{make_url(url).port}"
        several = url.replace(host, f"localhost:{free_port()},{host}") + "?sslmode=require"
        assert await one(several) == 1
        with pytest.raises(Exception, match=r".*") as caught:
            await one(f"{several}&target_session_attrs=standby")
        assert is_database_outage(caught.value)
