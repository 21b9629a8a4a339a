"""API, worker and Flower run jobs with the database role and the Redis users of Compose and Kubernetes.

These can do what their processes need, and cannot change the schema, read all keys, or administer a server.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from launcher.embedded import valkey_binary
from launcher.linux import die_with_parent
from tests.conftest import Servers
from tests.e2e.test_jobs import submit, wait_for_end, wait_until_running
from tests.e2e.test_outages import assert_unbroken, long_job, reading
from tests.e2e.test_tls import assert_shown, flower
from tests.support.database import create_database, drop_database, run_sql, switch_database
from tests.support.forked import run_forked
from tests.support.ports import free_port
from tests.support.stack import REPOSITORY, Stack, stack_template, write_models
from tests.support.waiting import eventually_sync

pytestmark = pytest.mark.timeout(90)

DATABASE, ROLE = "least_privilege", "Headrace app"
MODELS: list[dict[str, object]] = [
    {"name": "sim", "engine": "simulated", "slots": 8, "options": {"ttft_ms": 5, "itl_ms": 10}},
]


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server started by the script of Compose and Kubernetes; each user's password is its name."""
    folder, port = tmp_path_factory.mktemp("valkey"), free_port()
    (folder / "valkey-server").symlink_to(valkey_binary())
    passwords = {f"REDIS_{name}_PASSWORD": name.lower() for name in ("API", "WORKER", "FLOWER")}
    environment = {"REDIS_PASSWORD": "admin", "REDIS_ACL_FILE": str(folder / "users.acl"), **passwords}
    process = subprocess.Popen(
        [
            "sh",
            str(REPOSITORY / "k8s/components/in-cluster/redis-server.sh"),
            "--port",
            str(port),
            "--dir",
            str(folder),
        ],
        env={**os.environ, **environment, "PATH": f"{folder}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
        preexec_fn=die_with_parent(signal.SIGKILL),
    )
    eventually_sync(lambda: answers(port), "the server answers")
    yield port
    process.kill()
    process.wait()


def answers(port: int) -> bool:
    try:
        return bool(client_of(port, "default", "admin").ping())
    except redis.exceptions.ConnectionError:
        return False


def client_of(port: int, user: str, password: str | None = None) -> Any:
    return redis.Redis(port=port, username=user, password=password or user)


@pytest.fixture(scope="module")
def stack(servers: Servers, valkey: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    create_database(servers.postgres_url, DATABASE, template=stack_template(servers.postgres_url))
    owner = switch_database(servers.postgres_url, DATABASE)
    environment = {**os.environ, "DATABASE_URL": owner, "HEADRACE_ROLE_PASSWORD": "it's"}
    for _ in range(2):  # it can be repeated
        run_forked("migrations", "grant", ROLE, environment=environment, check=True)
    folder = tmp_path_factory.mktemp("stack")
    url = owner.replace("//postgres@", f"//{ROLE.replace(' ', '%20')}:it's@", 1)
    stack = Stack(url, redis_url(valkey, "api"), write_models(folder / "models.yaml", MODELS), folder)
    try:
        stack.start_api()
        stack.start_worker("sim", within_s=20, REDIS_URL=redis_url(valkey, "worker"))
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, DATABASE)
        run_sql(servers.postgres_url, f'DROP ROLE "{ROLE}"')


def redis_url(port: int, user: str) -> str:
    return f"redis://{user}:{user}@127.0.0.1:{port}/0"


async def test_jobs_run_and_flower_shows_and_cancels_them(stack: Stack, valkey: int) -> None:
    async with stack.client() as client:
        job = await long_job(client, 50)
        async with reading(client, job) as reader:
            await assert_unbroken(client, reader, 50)
        cancelled = await submit(client, max_tokens=4000)
        await wait_until_running(client, cancelled["id"])
        await client.post(f"/v1/jobs/{cancelled['id']}/cancel")
        assert (await wait_for_end(client, cancelled["id"]))["status"] == "cancelled"
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.delete(f"/v1/jobs/{job['id']}")).status_code in (200, 204)
        with flower(stack, REDIS_URL=redis_url(valkey, "flower")) as url:
            await assert_shown(url, stack)
            revoked = await submit(client, max_tokens=4000)
            await wait_until_running(client, revoked["id"])
            environment = {"REDIS_URL": redis_url(valkey, "flower")}
            run_forked(
                "celery", "-A", "workers.app", "control", "terminate", "SIGTERM", revoked["id"],
                environment={**stack.environment, **environment}, check=False,
            )  # fmt: skip
            assert (await wait_for_end(client, revoked["id"]))["status"] == "cancelled"
    log: list[dict[str, Any]] = client_of(valkey, "default", "admin").acl_log()
    assert not log, "no command of these processes was refused"
    for name in stack.processes:
        assert "Traceback" not in (Path(stack.folder) / f"{name}.log").read_text()


FORBIDDEN = (
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "dir", "x"),
    ("SHUTDOWN",),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("RANDOMKEY",),
    ("ACL", "LIST"),
    ("MONITOR",),
    ("SAVE",),
    ("REPLICAOF", "NO", "ONE"),
    ("MODULE", "LIST"),
    ("MIGRATE", "host", "1", "hr:x", "0", "1"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("CLIENT", "LIST"),
    ("SWAPDB", "0", "1"),
    ("FUNCTION", "LIST"),
    ("SCRIPT", "FLUSH"),
    ("INFO",),
    ("SET", "other", "x"),
    ("PUBLISH", "other", "x"),
    ("PSUBSCRIBE", "*"),
)


@pytest.mark.parametrize("user", ["api", "worker", "flower"])
def test_forbidden_commands(valkey: int, user: str) -> None:
    with client_of(valkey, user) as client:
        for command in FORBIDDEN:
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)
        client_of(valkey, "default", "admin").acl_log_reset()


def test_flower_reaches_no_data_of_jobs(valkey: int) -> None:
    with client_of(valkey, "flower") as client:
        for command in (
            ("XRANGE", "hr:log:x", "-", "+"),
            ("LPUSH", "headrace.sim", "x"),
            ("RPOP", "headrace.sim"),
            ("SUBSCRIBE", "hr:api:x"),
            ("PUBLISH", "hr:worker:x", "x"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)
        client_of(valkey, "default", "admin").acl_log_reset()


def test_the_api_reaches_no_remote_control(valkey: int) -> None:
    with client_of(valkey, "api") as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.publish("/0.celery.pidbox", "x")
    client_of(valkey, "default", "admin").acl_log_reset()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE x (a int)",
        "ALTER TABLE jobs ADD COLUMN x int",
        "DROP TABLE jobs",
        "TRUNCATE jobs",
        "CREATE INDEX ON jobs (id)",
        "CREATE ROLE x",
        "ALTER SYSTEM SET fsync = off",
        "COPY jobs TO PROGRAM 'true'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT * FROM pg_authid",
        "UPDATE alembic_version SET version_num = 'x'",
        "CREATE FUNCTION x() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    ],
)
async def test_forbidden_statements(stack: Stack, statement: str) -> None:
    url = stack.environment["DATABASE_URL"]
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        with pytest.raises(DBAPIError, match=r"permission denied|must be owner"):
            await connection.execute(text(statement))
    await engine.dispose()
