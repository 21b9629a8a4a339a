"""Migrations: up, down and up again; the result equals the tables in code."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

import shared.postgres.quality_tables  # adds its tables to those of `Base`
import shared.postgres.request_log_tables
import shared.postgres.usage_tables
import shared.postgres.webhook_tables  # noqa: F401
from api.keys.principal import Scope
from api.keys.store import ApiKeyStore
from shared.domain.answer_options import KeyOptions, TokenLimits
from shared.domain.owner import Owner
from shared.postgres.engine import transaction
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from shared.postgres.schema_version import SchemaMismatch, check_schema
from shared.postgres.tables import Base
from tests.integration.api.cache.test_cached_answers import new_job
from tests.support.database import migrate
from tests.support.recorded_version import VERSIONS
from tests.support.waiting import eventually


def is_no_partition(name: str | None, kind: str, _: object) -> bool:
    return kind != "table" or name is None or not name.startswith(("request_log_", "request_bodies_"))


def differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(
        connection, opts={"compare_server_default": True, "include_name": is_no_partition}
    )
    return list(compare_metadata(context, Base.metadata))


def tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


async def test_migrations_create_the_tables_in_code(database: AsyncEngine) -> None:
    async with database.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_downgrade_and_upgrade_again(database: AsyncEngine, database_url: str) -> None:
    migrate(database_url, "downgrade", "base")
    async with database.connect() as connection:
        assert await connection.run_sync(tables) == {"alembic_version"}
    migrate(database_url, "upgrade")
    async with database.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_a_database_behind_the_migrations_is_refused(database: AsyncEngine, database_url: str) -> None:
    migrate(database_url, "downgrade", "base")
    with pytest.raises(SchemaMismatch, match="python -m migrations upgrade"):
        await check_schema(database)


async def test_a_database_ahead_of_this_version_is_refused(database: AsyncEngine, database_url: str) -> None:
    await check_schema(database)
    async with database.begin() as connection:
        head = (await connection.exec_driver_sql("SELECT version_num FROM alembic_version")).scalar_one()
        await connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'from-the-future'")
    with pytest.raises(SchemaMismatch, match=f"does not know.*migrations downgrade {head}$"):
        await check_schema(database)


async def test_a_newer_schema_is_accepted_if_it_is_declared_compatible(database: AsyncEngine) -> None:
    async with database.begin() as connection:
        await connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'from-the-future'")
        await connection.exec_driver_sql(
            "COMMENT ON TABLE alembic_version IS 'from-the-future is compatible since 0009'"
        )
    await check_schema(database)
    async with database.begin() as connection:
        await connection.exec_driver_sql(
            "COMMENT ON TABLE alembic_version IS 'from-the-future is compatible since also-unknown'"
        )
    with pytest.raises(SchemaMismatch, match="does not know"):
        await check_schema(database)


OLD_KEYS = """
INSERT INTO api_keys (name, prefix, sha256) VALUES ('web', 'hr_1', 'a'), ('batch', 'hr_2', 'b'), ('web', 'hr_3', 'c')
"""
OLD_ROWS = (
    """
    INSERT INTO jobs (id, key_id, model, status, priority, request, metadata)
    SELECT 'job_' || lpad(n::text, 6, '0'), 1 + n % 3, 'm', 'queued', 3, '{}', '{}' FROM generate_series(1, :rows) AS n
    """,
    """
    INSERT INTO files (id, key_id, purpose, filename, bytes)
    SELECT 'file-' || k, k, 'batch', 'a', 1 FROM generate_series(1, 3) AS k
    """,
    """
    INSERT INTO batches (id, key_id, endpoint, input_file_id, completion_window, status, expires_at)
    SELECT 'batch_' || k, k, '/v1/completions', 'file-' || k, '24h', 'completed', now() FROM generate_series(1, 3) AS k
    """,
    """
    INSERT INTO idempotency_keys (key_id, key, request_sha256, job_id)
    SELECT k, 'key ' || k, 'x', 'job_00000' || k FROM generate_series(1, 3) AS k
    """,
)
OWNED = ("jobs", "files", "batches", "idempotency_keys")


async def assert_rows_have_the_project_of_their_key(connection: AsyncConnection) -> None:
    for table in OWNED:
        wrong = text(
            f"SELECT count(*) FROM {table} JOIN api_keys ON api_keys.id = key_id"  # noqa: S608
            f" WHERE {table}.project_id IS DISTINCT FROM api_keys.project_id"
        )
        assert (await connection.execute(wrong)).scalar() == 0, table


async def test_existing_rows_get_the_project_of_their_key(database: AsyncEngine, database_url: str) -> None:
    """Each key becomes the only key of a project, and its rows belong to that project: down and up again."""
    migrate(database_url, "downgrade", "0006")
    async with database.begin() as connection:
        await connection.exec_driver_sql(OLD_KEYS)
        for statement in OLD_ROWS:
            await connection.execute(text(statement), {"rows": 12_000} if ":rows" in statement else {})
    for _ in range(2):
        migrate(database_url, "upgrade")
        async with database.connect() as connection:
            names = await connection.execute(
                text(
                    "SELECT projects.name FROM api_keys JOIN projects ON projects.id = project_id ORDER BY api_keys.id"
                )
            )
            assert list(names.scalars()) == ["web", "batch", "web#3"]
            await assert_rows_have_the_project_of_their_key(connection)
            scopes = await connection.execute(text("SELECT DISTINCT scopes FROM api_keys"))
            assert list(scopes.scalars()) == [["inference"]]
            undispatched = await connection.execute(text("SELECT count(*) FROM jobs WHERE dispatched_at IS NULL"))
            assert undispatched.scalar() == 0
        migrate(database_url, "downgrade", "0006")


@pytest.mark.parametrize("revision", ["0007", "head"])
async def test_processes_of_the_previous_version_can_write(
    database: AsyncEngine, database_url: str, revision: str
) -> None:
    """They do not know projects, and keep running while the schema is migrated and new processes start."""
    migrate(database_url, "downgrade", "0006")
    migrate(database_url, "upgrade", revision)
    async with database.begin() as connection:
        await connection.exec_driver_sql(OLD_KEYS)
        for statement in OLD_ROWS:
            await connection.execute(text(statement), {"rows": 3} if ":rows" in statement else {})
        await assert_rows_have_the_project_of_their_key(connection)


async def test_an_interrupted_backfill_resumes(database: AsyncEngine, database_url: str) -> None:
    migrate(database_url, "downgrade", "0006")
    async with database.begin() as connection:
        await connection.exec_driver_sql(OLD_KEYS)
        for statement in OLD_ROWS:
            await connection.execute(text(statement), {"rows": 100} if ":rows" in statement else {})
    migrate(database_url, "upgrade", "0007")
    async with database.begin() as connection:
        half = (
            "UPDATE jobs SET project_id = api_keys.project_id FROM api_keys"
            " WHERE api_keys.id = key_id AND jobs.id < 'job_000050'"
        )
        await connection.execute(text(half))
    migrate(database_url, "upgrade")
    async with database.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_submits_go_through_while_the_schema_is_migrated(database: AsyncEngine, database_url: str) -> None:
    """The previous version inserts jobs and idempotency keys, and ends many jobs in one statement, all the time."""
    migrate(database_url, "downgrade", "0006")
    async with database.begin() as connection:
        await connection.exec_driver_sql(OLD_KEYS)
        await connection.execute(text(OLD_ROWS[0]), {"rows": 20_000})
    migrated = asyncio.Event()
    written: list[int] = []

    async def submit(writer: int) -> None:
        while not migrated.is_set() or len(written) < 50:
            number = len(written)
            written.append(writer)
            async with database.begin() as connection:
                await connection.execute(
                    text(
                        "INSERT INTO idempotency_keys (key_id, key, request_sha256, job_id)"
                        " VALUES (:key_id, :key, 'x', 'job') ON CONFLICT DO NOTHING"
                    ),
                    {"key_id": 1 + number % 3, "key": str(number)},
                )
                await connection.execute(
                    text(
                        "INSERT INTO jobs (id, key_id, model, status, priority, request, metadata)"
                        " SELECT 'job_w' || :number || '_' || n, 1 + n % 3, 'm', 'queued', 3, '{}', '{}'"
                        " FROM generate_series(1, 20) AS n"
                    ),
                    {"number": str(number)},
                )

    async def end(writer: int) -> None:
        random = Random(writer)
        while not migrated.is_set():
            ids = [f"job_{random.randint(1, 20_000):06d}" for _ in range(20)]
            async with database.begin() as connection:
                await connection.execute(
                    text("UPDATE jobs SET output = '[]' WHERE id = ANY(:ids)"), {"ids": sorted(ids, reverse=True)}
                )

    async def upgrade() -> None:
        try:
            await asyncio.to_thread(migrate, database_url, "upgrade")
        finally:
            migrated.set()

    async with asyncio.TaskGroup() as tasks:
        for writer in range(4):
            tasks.create_task(submit(writer))
        tasks.create_task(end(0))
        tasks.create_task(upgrade())
    async with database.connect() as connection:
        assert await connection.run_sync(differences) == []
        jobs = (await connection.execute(text("SELECT count(*) FROM jobs WHERE id LIKE 'job_w%'"))).scalar()
    assert jobs == 20 * len(written)


async def test_an_index_is_built_again_if_an_older_transaction_delays_it(
    database: AsyncEngine, database_url: str
) -> None:
    """The build waits for older transactions, for at most the lock timeout, and leaves an invalid index."""
    migrate(database_url, "downgrade", "0009")
    async with database.connect() as monitor, transaction(database) as older:
        await older.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await older.exec_driver_sql("SELECT 1")  # takes the snapshot
        migration = asyncio.create_task(asyncio.to_thread(migrate, database_url, "upgrade"))

        async def gave_up() -> bool:
            ended = text(
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle'"
                " AND query LIKE 'CREATE INDEX CONCURRENTLY%'"
            )
            return (await monitor.execute(ended)).first() is not None or migration.done()

        await eventually(gave_up, "the first attempt gave up")
    await migration
    async with database.connect() as connection:
        invalid = await connection.execute(text("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"))
        assert list(invalid.scalars()) == []
        assert await connection.run_sync(differences) == []


async def test_the_previous_release_can_run_on_this_schema(database: AsyncEngine, database_url: str) -> None:
    """Each supported release, by its recording, can start on this schema, also after a step of a downgrade."""
    releases = sorted(path.stem for path in VERSIONS.glob("*.json"))
    for _ in range(2):
        async with database.connect() as connection:
            found = (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar_one()
            comment = (
                await connection.execute(text("SELECT obj_description('alembic_version'::regclass)"))
            ).scalar_one()
        assert comment == f"{found} is compatible since {releases[0]}"
        migrate(database_url, "downgrade")


async def test_a_downgrade_gives_no_key_more_rights(database: AsyncEngine, database_url: str) -> None:
    """Earlier versions know neither limits of tokens nor expiry and scopes."""
    store = ApiKeyStore(database)
    names = ("plain", "later", "expired", "operator", "input", "output")
    limits = {
        "later": TokenLimits(default_output=5),
        "input": TokenLimits(max_input=5),
        "output": TokenLimits(max_output=5),
    }
    for name in names:
        scopes = [Scope.ADMIN] if name == "operator" else [Scope.INFERENCE]
        options = KeyOptions(no_cache=name == "plain", token_limits=limits.get(name))
        await store.create(
            name,
            f"hr_{name}_{'k' * 43}",
            scopes=scopes,
            expires_in_s=None if name == "plain" else 3600,
            options=options,
        )
    async with database.begin() as connection:
        await connection.execute(text("UPDATE api_keys SET expires_at = now() WHERE name = 'expired'"))
        await connection.execute(text("UPDATE api_keys SET expires_at = NULL WHERE name = 'operator'"))
    migrate(database_url, "downgrade", "0006")
    async with database.connect() as connection:
        valid = await connection.execute(text("SELECT name FROM api_keys WHERE revoked_at IS NULL ORDER BY id"))
        assert list(valid.scalars()) == ["plain", "later"]


async def test_a_downgrade_copies_shared_answers(database: AsyncEngine, database_url: str, owner: Owner) -> None:
    """Jobs that the response cache has answered keep their answers; those of deleted jobs are removed."""
    async with database.begin() as connection:
        statement = text(
            """
            INSERT INTO jobs (id, project_id, key_id, model, status, priority, request, metadata, output, log,
                              answered_by, deleted_at)
            VALUES ('source', :project, :key, 'm', 'completed', 3, '{}', '{}', '[1]', 'log', NULL, now()),
                   ('hit', :project, :key, 'm', 'completed', 3, '{}', '{}', NULL, NULL, 'source', NULL),
                   ('deleted hit', :project, :key, 'm', 'completed', 3, '{}', '{}', NULL, NULL, 'source', now())
            """
        )
        await connection.execute(statement, {"project": owner.project_id, "key": owner.key_id})
    migrate(database_url, "downgrade", "0015")
    async with database.connect() as connection:
        rows = await connection.execute(text("SELECT id, output::text, log FROM jobs"))
        found = {row.id: (row.output, row.log) for row in rows}
    assert found == {"source": (None, None), "hit": ("[1]", "log"), "deleted hit": (None, None)}


async def test_a_downgrade_releases_followers_to_the_queue(
    database: AsyncEngine, database_url: str, store: JobStore, owner: Owner
) -> None:
    """The previous version would neither send their messages nor end them."""
    leader, follower = [created[0] for _ in range(2) if (created := await store.coalesce(new_job(owner))) is not None]
    assert follower.follows == leader.id
    waiting = await RecoveryStore(database).waiting(["m"], limit=5, older_than_s=0, priorities=range(9))
    assert [hint.job_id for hint in waiting] == [leader.id]
    migrate(database_url, "downgrade", "0015")
    # As the previous version finds jobs whose message is missing.
    async with database.connect() as connection:
        found = await connection.execute(
            text("SELECT id FROM jobs WHERE status = 'queued' AND dispatched_at IS NOT NULL ORDER BY id")
        )
        assert list(found.scalars()) == [leader.id, follower.id]


async def test_an_interrupted_downgrade_is_continued(database: AsyncEngine, database_url: str, owner: Owner) -> None:
    async with database.begin() as connection:
        await connection.execute(text("ALTER TABLE jobs DROP COLUMN follows, DROP COLUMN answered_by"))
        await connection.execute(text("ALTER TABLE api_keys DROP COLUMN options"))
    migrate(database_url, "downgrade", "0015")
    async with database.connect() as connection:
        assert (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar() == "0015"


async def test_project_names_are_never_shared_by_accident(database: AsyncEngine, database_url: str) -> None:
    migrate(database_url, "downgrade", "0006")
    async with database.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO api_keys (name, prefix, sha256) VALUES ('a', '1', '1'), ('a', '2', '2'), ('a#2', '3', '3')"
            )
        )
    migrate(database_url, "upgrade", "0007")
    async with database.begin() as connection:
        # By a process of the previous version.
        await connection.execute(text("INSERT INTO api_keys (name, prefix, sha256) VALUES ('a', '4', '4')"))
    async with database.connect() as connection:
        projects = await connection.execute(text("SELECT count(DISTINCT project_id), count(*) FROM api_keys"))
        assert projects.one() == (4, 4)
