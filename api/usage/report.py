"""What a report shows of its rows: the values of the groups, tokens, amounts and shares."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from api.http.money import decimal_text, dollars, total_of
from api.http.parquet import ParquetFile
from api.keys.store import format_id
from api.usage.store import COLUMNS, Dimension, UsageSelection
from shared.postgres.usage_sums import VALUES
from shared.runtime.chunked_json import Mapped

if TYPE_CHECKING:
    import pyarrow

# What a row shows beside its groups.
SUMS = (
    "requests",
    "cached_requests",
    "attempts",
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "total_tokens",
    "cached_input_share",
    "cached_request_share",
    "cost",
    "charge",
    "saved",
    "unpriced",
)
_SHARES = ("cached_input_share", "cached_request_share")
_AMOUNTS = ("cost", "charge", "saved")
# Decimal places of amounts in Parquet.
AMOUNT_DIGITS = 18
_EXACT = Context(prec=38)
# A spreadsheet takes a cell that begins with one of these for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


@dataclass(frozen=True, slots=True)
class Report:
    """The rows of a selection, and the names of their projects by id.

    `period`: what its periods are, such as `day`. `shows_cost`: whether JSON and CSV have the cost, which is what the
    operator pays.
    """

    selection: UsageSelection
    rows: Sequence[Any]
    project_names: Mapping[int, str]
    period: str | None = None
    shows_cost: bool = False

    @property
    def columns(self) -> list[str]:
        """The names of the groups, in order."""
        return [*([self.period] if self.period else []), *(one.value for one in self.selection.group_by)]

    def groups(self, row: Any) -> dict[str, Any]:
        """The values of a row's groups."""
        found: dict[str, Any] = {}
        if self.period:
            found[self.period] = self.selection.periods.names[row.period]
        for dimension in self.selection.group_by:
            found[dimension.value] = self.value(row, dimension)
        return found

    def value(self, row: Any, dimension: Dimension) -> Any:
        """The value of one of a row's groups, as the API shows it. None: no end user, an unknown engine."""
        value = getattr(row, COLUMNS[dimension])
        match dimension:
            case Dimension.PROJECT:
                return self.project_names.get(value, f"project_{value}")  # it was deleted
            case Dimension.KEY:
                return format_id(value)
            case Dimension.USER:
                return value or None
            case _:
                return value

    def total(self) -> Any:
        """The sum of all rows, as a row without groups."""
        sums = {name: sum(getattr(row, name) for row in self.rows) for name in VALUES if name != "saved"}
        return SimpleNamespace(**sums, saved=total_of(row.saved for row in self.rows))

    def items(self) -> Mapped[Any, dict[str, Any]]:
        """The rows as JSON objects, which are made when they are read."""
        return Mapped(self.rows, lambda row: {**self.groups(row), **self.json_sums(row)})

    def sums(self, row: Any) -> dict[str, Any]:
        """The values of `SUMS` of a row, with exact amounts."""
        total_input, total_output = input_tokens(row), output_tokens(row)
        values = (
            row.requests,
            row.cached_requests,
            row.attempts,
            total_input,
            row.input_cache_read,
            cache_writes(row),
            total_output,
            row.output_reasoning,
            total_input + total_output,
            _share(row.input_cache_read, total_input),
            _share(row.cached_requests, row.requests),
            known(row, "cost") if self.shows_cost else None,
            known(row, "charge"),
            row.saved,
            row.unpriced,
        )
        return dict(zip(SUMS, values, strict=True))

    def json_sums(self, row: Any) -> dict[str, Any]:
        """The same for JSON."""
        found = self.sums(row)
        return {**found, **{name: dollars(found[name]) for name in _AMOUNTS}}

    def csv(self) -> bytes:
        """The rows as CSV, with a header. Amounts are exact."""
        file = io.StringIO()
        writer = csv.writer(file)
        writer.writerow([*self.columns, *SUMS])
        for row in self.rows:
            cells = [_cell(value) for value in self.groups(row).values()]
            writer.writerow([*cells, *map(_number, self.sums(row).values())])
        return file.getvalue().encode()

    def parquet(self) -> bytes:
        """The same as a Parquet file. `api.http.parquet.load_pyarrow` must have been called."""
        file = ParquetFile(self._schema, {"headrace.currency": "usd"})
        rows = [{**self.groups(row), **_quantized(self.sums(row))} for row in self.rows]
        return file.add(rows) + file.end()

    def _schema(self) -> pyarrow.Schema:
        import pyarrow

        whole, share, amount = pyarrow.int64(), pyarrow.float64(), pyarrow.decimal128(38, AMOUNT_DIGITS)
        kinds = dict.fromkeys(SUMS, whole) | dict.fromkeys(_SHARES, share) | dict.fromkeys(_AMOUNTS, amount)
        groups = {name: pyarrow.bool_() if name == Dimension.BATCH else pyarrow.string() for name in self.columns}
        return pyarrow.schema(groups | kinds)


def input_tokens(row: Any) -> int:
    """All input tokens of a row."""
    total: int = row.input_fresh + row.input_cache_read + cache_writes(row)
    return total


def cache_writes(row: Any) -> int:
    """The input tokens of a row that were written to a cache."""
    total: int = row.input_cache_write_5m + row.input_cache_write_1h
    return total


def output_tokens(row: Any) -> int:
    """All output tokens of a row, with those of the reasoning."""
    total: int = row.output_text + row.output_reasoning
    return total


def known(row: Any, name: str) -> Decimal | None:
    """An amount of a row: the sum of what has a price; None if nothing has."""
    amount: Decimal = getattr(row, name)
    return None if row.unpriced and not amount else amount


def _quantized(sums: dict[str, Any]) -> dict[str, Any]:
    """The sums, with amounts of as many decimal places as Parquet has."""
    unit = Decimal(1).scaleb(-AMOUNT_DIGITS)
    amounts = {name: sums[name] for name in _AMOUNTS if sums[name] is not None}
    return sums | {name: amount.quantize(unit, context=_EXACT) for name, amount in amounts.items()}


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _cell(value: Any) -> str:
    text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _number(value: Any) -> str:
    return decimal_text(value) if isinstance(value, Decimal) else "" if value is None else str(value)
