"""What all stores share: connections, and rows as statement parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy import (
    ARRAY,
    JSON,
    ColumnElement,
    Row,
    Text,
    bindparam,
    cast,
    column,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.types import TypeEngine


class Records:
    """Rows as parameters, an array a column: so one statement writes any number of them.

    JSON travels as text and is cast to `json` by the statement, which takes it as it is: U+0000 too.
    """

    def __init__(self, name: str, **types: type[TypeEngine[Any]] | TypeEngine[Any]) -> None:
        self._name = name
        self._types = types
        arrays = [bindparam(f"{name}_{field}", type_=ARRAY(_sent(kind))) for field, kind in types.items()]
        columns = [column(field, _sent(kind)) for field, kind in types.items()]
        self._table = func.unnest(*arrays).table_valued(*columns).render_derived(name)

    def __getattr__(self, field: str) -> Any:
        """A column, in an expression."""
        kind = self._types[field]
        found = self._table.c[field]
        return cast(found, kind) if _is_json(kind) else found

    def parameters(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The statement's parameters for these rows."""
        return {
            f"{self._name}_{field}": [_dumped(row[field]) if _is_json(kind) else row[field] for row in rows]
            for field, kind in self._types.items()
        }


def _is_json(kind: Any) -> bool:
    return kind in (JSON, JSONB)


def _sent(kind: Any) -> Any:
    return Text if _is_json(kind) else kind


def _dumped(value: Any) -> str | None:
    """A JSON column's value: its text as it is, or what is to be written."""
    return value if value is None or isinstance(value, str) else orjson.dumps(value).decode()


def seconds(count: float | ColumnElement[float]) -> Any:
    """An interval."""
    return func.make_interval(0, 0, 0, 0, 0, 0, count)


class Store:
    """What the stores of rows have in common. Raises SQLAlchemy's errors where the database is away."""

    def __init__(self, engine: AsyncEngine, region: str = "") -> None:
        """`region` ends the ids of what is made here; see `shared.domain.ids`."""
        self._engine = engine
        self._region = region

    async def _first(self, statement: Any) -> Row[Any] | None:
        async with self._engine.connect() as connection:
            row: Row[Any] | None = (await connection.execute(statement)).first()
        return row

    async def _changes(self, statement: Any) -> bool:
        async with self._engine.connect() as connection:
            return bool((await connection.execute(statement)).rowcount)
