"""DATABASE_URL and REDIS_URL: what each parameter means, and clear messages for the others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from shared.config.postgres_url import asyncpg_url, driver_arguments
from shared.config.redis_url import parse_redis_url


@pytest.mark.parametrize(
    ("url", "dsn"),
    [
        ("postgresql://user:p%40ss@host:5433/name", "postgresql://user:p%40ss@host:5433/name"),
        ("postgresql+asyncpg://postgres@/postgres?host=/run/pg", "postgresql://postgres@/postgres?host=%2Frun%2Fpg"),
        ("postgres://h/n?sslmode=require", "postgresql://h/n?sslmode=require"),
        ("postgresql://h/n?ssl=disable", "postgresql://h/n?sslmode=disable"),
        ("postgresql://h/n?ssl=true", "postgresql://h/n?sslmode=require"),
        ("postgresql://a:1,b:2/n", "postgresql://a:1,b:2/n?target_session_attrs=read-write"),
        ("postgresql:///n?host=a&host=b", "postgresql:///n?host=a%2Cb&target_session_attrs=read-write"),
        ("postgresql://a,b/n?target_session_attrs=any", "postgresql://a,b/n?target_session_attrs=any"),
        ("postgresql://h/n?channel_binding=prefer&keepalives=1&gssencmode=disable", "postgresql://h/n"),
        ("postgresql://[::1]:5432/n", "postgresql://[::1]:5432/n"),
    ],
)
def test_postgres_urls(url: str, dsn: str) -> None:
    arguments = driver_arguments(asyncpg_url(url))
    assert arguments == {"dsn": dsn, "timeout": 5.0, "server_settings": {"application_name": "headrace"}}


def test_postgres_settings_of_the_session() -> None:
    url = (
        "postgresql://h/n?connect_timeout=2&application_name=mine&options=-c%20work_mem%3D8MB"
        "&statement_cache_size=0&prepared_statement_cache_size=0"
    )
    assert driver_arguments(url) == {
        "dsn": "postgresql://h/n",
        "timeout": 2.0,
        "server_settings": {"application_name": "mine", "options": "-c work_mem=8MB"},
        "statement_cache_size": 0,
        "prepared_statement_cache_size": 0,
    }


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://h/n", "postgresql://user:password@host:port/database"),
        ("postgresql://h:70000/n", "postgresql://user:password@host:port/database"),
        ("postgresql://a:1,b:x/n", "postgresql://user:password@host:port/database"),
        ("postgresql://h/n?sslmode", "postgresql://user:password@host:port/database"),
        ("postgresql://h/n?sslmod=require", "unknown parameter 'sslmod'"),
        ("postgresql://h/n?sslmode=required", "sslmode must be one of disable"),
        ("postgresql://h/n?ssl=yes", "sslmode must be one of disable"),
        ("postgresql://h/n?sslmode=verify-full", "requires sslrootcert"),
        ("postgresql://h/n?sslmode=verify-full&sslrootcert=/no/such", "sslrootcert: /no/such cannot be read"),
        ("postgresql://h/n?sslcert=/no/such", "sslcert: /no/such cannot be read"),
        ("postgresql://h/n?target_session_attrs=primary-only", "target_session_attrs must be one of"),
        ("postgresql://h/n?channel_binding=require", "channel_binding=require is not supported"),
        ("postgresql://h/n?connect_timeout=soon", "connect_timeout must be a number"),
    ],
)
def test_postgres_urls_that_are_refused(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        asyncpg_url(url)


def test_redis_over_tls(tmp_path: Path) -> None:
    file = tmp_path / "file.pem"
    file.write_text("")
    url = f"rediss://:p%40ss@host/2?ssl_ca_certs={file}&ssl_certfile={file}&ssl_keyfile={file}"
    address = parse_redis_url(url)
    tls = {
        "ssl_ca_certs": str(file),
        "ssl_certfile": str(file),
        "ssl_keyfile": str(file),
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
    }
    assert (address.hosts, address.db, address.login) == ((("host", 6379),), 2, {"username": None, "password": "p@ss"})
    assert address.tls == tls
    assert address.celery_settings() == {
        "broker_url": "rediss://:p%40ss@host:6379/2",
        "broker_use_ssl": tls,
        "broker_transport_options": {},
    }
    unverified = parse_redis_url("rediss://host?ssl_cert_reqs=CERT_NONE").tls
    assert unverified == {"ssl_cert_reqs": "none", "ssl_check_hostname": False}


@pytest.mark.parametrize(
    ("url", "broker"),
    [
        ("redis://host", "redis://host:6379/0"),
        ("redis://user:pw@[::1]:1/3", "redis://user:pw@[::1]:1/3"),
        ("redis://host:1?db=4", "redis://host:1/4"),
        ("unix:///run/valkey.sock?db=1", "redis+socket:///run/valkey.sock?virtual_host=1"),
        ("unix://user:pw@/run/valkey.sock", "redis+socket://user:pw@/run/valkey.sock?virtual_host=0"),
        ("redis+socket:///run/valkey.sock?virtual_host=2", "redis+socket:///run/valkey.sock?virtual_host=2"),
        ("redis+sentinel://a,b:2/1?service_name=m", "sentinel://a:26379/1;sentinel://b:2/1"),
    ],
)
def test_celery_urls(url: str, broker: str) -> None:
    assert parse_redis_url(url).celery_settings()["broker_url"] == broker


def test_sentinels_have_credentials_of_their_own() -> None:
    url = "rediss+sentinel://u:p@a/0?service_name=m&sentinel_username=s&sentinel_password=q&ssl_cert_reqs=none"
    address = parse_redis_url(url)
    assert address.login == {"username": "u", "password": "p"}
    options: dict[str, Any] = address.celery_settings()["broker_transport_options"]
    assert options["master_name"] == "m"
    assert options["sentinel_kwargs"] | {"username": "s", "password": "q", "ssl": True} == options["sentinel_kwargs"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://host", "redis://host:port/0"),
        ("redis://host:port/0", "redis://host:port/0"),
        ("redis://host/first", "redis://host:port/0"),
        ("redis://a,b/0", "has several hosts"),
        ("redis://host?ssl_ca_certs=x", "unknown parameter 'ssl_ca_certs'"),
        ("rediss://host?ssl_ca=x", "unknown parameter 'ssl_ca'"),
        ("rediss://host?ssl_ca_certs=/no/such", "ssl_ca_certs: /no/such cannot be read"),
        ("rediss://host?ssl_cert_reqs=maybe", "ssl_cert_reqs must be one of"),
        ("rediss://host?ssl_check_hostname=maybe", "ssl_check_hostname must be true or false"),
        ("rediss://host?ssl_certfile=/dev/null", "belong together"),
        ("redis+sentinel://host/0", "requires ?service_name="),
        ("redis://host/0?service_name=m", "unknown parameter 'service_name'"),
        ("unix://host/run/valkey.sock", "unix:///path"),
        ("unix://", "unix:///path"),
    ],
)
def test_redis_urls_that_are_refused(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_redis_url(url)
