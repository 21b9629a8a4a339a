"""Prepared statements: their rows, and the state of the connection after a failed or cancelled run."""

from __future__ import annotations

import asyncio
import gc

import pytest
from sqlalchemy import ARRAY, Integer, Text, bindparam, func, literal, select, text, type_coerce
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.postgres.engine import connect
from shared.postgres.prepared import Prepared

SLEEP = Prepared(text("SELECT pg_sleep(60)"))
NUMBER = Prepared(select(bindparam("number", type_=Integer).label("number")))


async def test_columns_are_attributes_of_rows(database: AsyncEngine) -> None:
    words = func.unnest(bindparam("words", type_=ARRAY(Text))).column_valued("word")
    seven = literal(7).label("seven")
    document = type_coerce(func.jsonb_build_object("word", words), JSONB).label("document")
    statement = Prepared(select(words.label("word"), seven, document).where(words.in_(["a", "b"])).order_by(words))
    rows = await statement.run(database, {"words": ["b", "c", "a"]})
    assert [(row.word, row.seven, row.document) for row in rows] == [("a", 7, {"word": "a"}), ("b", 7, {"word": "b"})]
    assert await statement.run(database, {"words": []}) == []


async def test_a_run_is_a_transaction_of_its_own(database: AsyncEngine) -> None:
    insert = Prepared(text("INSERT INTO api_keys (name, prefix, sha256) VALUES ('k', 'p', 's') RETURNING name"))
    (row,) = await insert.run(database, {})
    assert row.name == "k"
    async with database.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM api_keys WHERE sha256 = 's'"))).scalar_one() == 1


async def test_an_error_has_the_sqlstate_and_no_parameters(database: AsyncEngine) -> None:
    with pytest.raises(DBAPIError, match="division by zero") as caught:
        await Prepared(select(literal(1) / bindparam("number", type_=Integer))).run(database, {"number": 0})
    assert getattr(caught.value.orig, "sqlstate", None) == "22012"
    assert not caught.value.connection_invalidated
    assert caught.value.params is None
    assert (await NUMBER.run(database, {"number": 4}))[0].number == 4


async def test_an_error_does_not_quote_rows(database: AsyncEngine) -> None:
    """PostgreSQL's details quote them, and rows contain prompts."""
    duplicates = "INSERT INTO api_keys (name, prefix, sha256) SELECT 'k', 'p', 'secret' FROM generate_series(1, 2)"
    with pytest.raises(DBAPIError, match="duplicate key") as caught:
        await Prepared(text(duplicates)).run(database, {})
    assert "secret" in str(caught.value.__cause__)
    assert "secret" not in f"{caught.value} {caught.value.orig}"


@pytest.mark.parametrize("parameters", [{}, {"number": 1, "other": 2}, {"other": 2}])
async def test_missing_and_unknown_parameters_are_refused(database: AsyncEngine, parameters: dict[str, int]) -> None:
    with pytest.raises(TypeError, match=r"the parameters are \['number'\], not"):
        await NUMBER.run(database, parameters)


async def test_a_cancelled_run_does_not_affect_later_runs(database_url: str) -> None:
    engine = connect(database_url, pool_size=1)
    for _ in range(3):
        sleeping = asyncio.create_task(SLEEP.run(engine, {}))
        await asyncio.wait((sleeping,), timeout=0.05)
        sleeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleeping
        assert [(await NUMBER.run(engine, {"number": number}))[0].number for number in range(3)] == [0, 1, 2]
    await engine.dispose()


async def test_a_connection_closed_by_the_server_is_replaced(database_url: str) -> None:
    engine = connect(database_url, pool_size=1)
    with pytest.raises(DBAPIError) as caught:
        await Prepared(text("SELECT pg_terminate_backend(pg_backend_pid())")).run(engine, {})
    assert caught.value.connection_invalidated
    assert (await NUMBER.run(engine, {"number": 5}))[0].number == 5
    await engine.dispose()


async def test_a_changed_table_is_noticed(database: AsyncEngine) -> None:
    """As after a migration while processes are running."""
    async with database.connect() as connection:
        await connection.execute(text("CREATE TABLE changing (a integer)"))
        await connection.execute(text("INSERT INTO changing VALUES (1)"))
    everything = Prepared(text("SELECT * FROM changing"))
    try:
        assert [vars(row) for row in await everything.run(database, {})] == [{"a": 1}]
        async with database.connect() as connection:
            await connection.execute(text("ALTER TABLE changing ADD b text DEFAULT 'x'"))
        assert [vars(row) for row in await everything.run(database, {})] == [{"a": 1, "b": "x"}]
    finally:
        async with database.connect() as connection:
            await connection.execute(text("DROP TABLE changing"))


def test_an_event_loop_that_ends_during_a_run_leaves_no_open_connection(database_url: str) -> None:
    """An open connection causes a warning when it is collected, which pytest turns into an error."""

    async def return_during_run() -> None:
        engine = connect(database_url, pool_size=1)
        await asyncio.wait((asyncio.create_task(SLEEP.run(engine, {})),), timeout=0.2)

    asyncio.run(return_during_run())
    gc.collect()
