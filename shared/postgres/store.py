"""The base class of all stores, and helpers that read rows and pass rows as parameters."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import orjson
from pydantic import ValidationError
from sqlalchemy import (
    ARRAY,
    JSON,
    ColumnElement,
    LargeBinary,
    Row,
    Select,
    Text,
    bindparam,
    cast,
    column,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.types import TypeEngine

from shared.domain.errors import UnreadableRow
from shared.domain.field_types import message_of

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Encoded:
    """The type of a column whose values are large texts in UTF-8: decoding and encoding them would stall the loop."""

    def __init__(self, kind: type[TypeEngine[Any]]) -> None:
        self.kind = kind


class Records:
    """Rows as statement parameters, one array per column, so that one statement writes any number of rows.

    JSON is sent as text, which the statement casts to `json`: that type accepts U+0000.
    """

    def __init__(self, name: str, **types: type[TypeEngine[Any]] | TypeEngine[Any] | Encoded) -> None:
        self._name = name
        self._types = types
        self._json = frozenset(field for field, kind in types.items() if _is_json(kind))
        arrays = [bindparam(f"{name}_{field}", type_=ARRAY(_wire_type(kind))) for field, kind in types.items()]
        columns = [column(field, _wire_type(kind)) for field, kind in types.items()]
        self._table = func.unnest(*arrays).table_valued(*columns).render_derived(name)

    def __getattr__(self, field: str) -> Any:
        """A column, for use in an expression."""
        kind = self._types[field]
        found = self._table.c[field]
        if isinstance(kind, Encoded):
            text = func.convert_from(found, "UTF8", type_=Text)
            return cast(text, kind.kind) if _is_json(kind.kind) else text
        return cast(found, kind) if _is_json(kind) else found

    def values_of(self, field: str) -> Select[Any]:
        """Select the values of one column, without reading the others, which may be large."""
        kind = _wire_type(self._types[field])
        values = func.unnest(bindparam(f"{self._name}_{field}", type_=ARRAY(kind)))
        table = values.table_valued(column(field, kind)).render_derived(f"{self._name}_{field}")
        return select(table.c[field])

    def parameters(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The statement's parameters for these rows."""
        return {
            f"{self._name}_{field}": [json_text(row[field]) if field in self._json else row[field] for row in rows]
            for field in self._types
        }


def _is_json(kind: Any) -> bool:
    return kind in (JSON, JSONB)


def _wire_type(kind: Any) -> Any:
    if isinstance(kind, Encoded):
        return LargeBinary
    return Text if _is_json(kind) else kind


def json_text(value: Any) -> str | None:
    """The text of a JSON value; a string is taken to be JSON text already."""
    return value if value is None or isinstance(value, str) else orjson.dumps(value).decode()


# The years, months, weeks, days, hours and minutes of an interval; not parameters, which each execution would send.
_NO_OTHER_UNITS: list[ColumnElement[int]] = [literal_column("0")] * 6


def seconds(count: float | ColumnElement[float]) -> Any:
    """An SQL interval of `count` seconds."""
    return func.make_interval(*_NO_OTHER_UNITS, count)


@contextmanager
def readable(what: str, item_id: str) -> Iterator[None]:
    """Read one row. Errors about its values are raised as `UnreadableRow`."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        member = ".".join(map(str, first["loc"]))
        raise UnreadableRow(what, item_id, f"{member}: {message_of(first)}") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        # Messages of these errors quote values, which may be a part of a prompt or an output.
        *_, where = traceback.extract_tb(error.__traceback__)
        raise UnreadableRow(what, item_id, f"{type(error).__name__} in {where.name}") from error


class Store:
    """The base class of stores. Methods raise SQLAlchemy's errors if the database is unavailable."""

    def __init__(self, engine: AsyncEngine, region: str = "") -> None:
        """`region` is the last part of the ids that this store creates; see `shared.domain.ids`."""
        self._engine = engine
        self._region = region

    async def _first(self, statement: Any) -> Row[Any] | None:
        async with self._engine.connect() as connection:
            row: Row[Any] | None = (await connection.execute(statement)).first()
        return row

    async def is_writable(self) -> bool:
        """Whether the database accepts writes; a standby, for example, does not."""
        row = await self._first(select(func.current_setting("transaction_read_only")))
        return row is not None and row[0] == "off"

    async def _one(self, statement: Any, build: Callable[[Row[Any]], T]) -> T | None:
        """Build a value from the first row; None if there is no row."""
        row = await self._first(statement)
        return build(row) if row is not None else None

    async def _all(self, statement: Any, build: Callable[[Row[Any]], T]) -> list[T]:
        """Build a value from each row."""
        async with self._engine.connect() as connection:
            return [build(row) for row in await connection.execute(statement)]

    async def _changes(self, statement: Any) -> bool:
        """Execute a statement; return whether it changed any row."""
        async with self._engine.connect() as connection:
            return bool((await connection.execute(statement)).rowcount)

    async def _readable(self, statement: Any, build: Callable[[Row[Any]], T]) -> list[T]:
        """As `_all`, without the rows that this version cannot read: one row must not fail the others."""
        return build_readable(await self._all(statement, lambda row: row), build)

    async def _page(
        self,
        statement: Select[Any],
        item_id: Any,
        build: Callable[[Row[Any]], T],
        *,
        limit: int,
        after: str | None,
        ascending: bool = False,
    ) -> list[T]:
        """Build the values of one page: `limit` rows after the id `after`, newest first unless `ascending`.

        Rows that this version cannot read are left out, and others take their places.
        """
        page: list[T] = []
        ordered = statement.order_by(item_id.asc() if ascending else item_id.desc()).limit(limit)
        while True:
            query = ordered
            if after is not None:
                query = ordered.where(item_id > after if ascending else item_id < after)
            rows = await self._all(query, lambda row: row)
            page += build_readable(rows, build)
            if len(rows) < limit or len(page) >= limit:
                return page[:limit]
            after = rows[-1].id


def build_readable(rows: Sequence[Any], build: Callable[[Any], T]) -> list[T]:
    """Build a value from each row that this version can read; the others are logged."""
    values = []
    for row in rows:
        try:
            values.append(build(row))
        except UnreadableRow as error:
            logger.warning("%s=%s cannot be read: %s", error.what, error.item_id, error.reason)
    return values
