"""Reports of usage as Parquet: the columns of CSV, with exact amounts."""

from __future__ import annotations

import io
from datetime import date
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow.parquet
import pytest

from api.http.parquet import load_pyarrow
from api.usage.periods import Periods
from api.usage.report import SUMS, Report
from api.usage.store import Dimension, UsageFilters, UsageSelection
from shared.domain.errors import InvalidRequest
from shared.postgres.usage_sums import VALUES

AMOUNT = Decimal("0.000000000123456789")


def report(*rows: Any) -> Report:
    periods = Periods.days(date(2026, 11, 1), date(2026, 11, 3), ZoneInfo("UTC"))
    groups = (Dimension.PROJECT, Dimension.USER, Dimension.BATCH)
    selection = UsageSelection(periods, UsageFilters(), groups, by_period=True)
    return Report(selection, rows, {1: "shop"}, "day", shows_cost=True)


def row(**values: Any) -> Any:
    zero: dict[str, Any] = dict.fromkeys(VALUES, 0)
    amounts = dict.fromkeys(("cost", "charge", "saved"), Decimal(0))
    groups = {"period": 1, "project_id": 1, "end_user": "", "batch": False}
    return SimpleNamespace(**{**zero, **amounts, **groups, **values})


def read(content: bytes) -> Any:
    return pyarrow.parquet.read_table(io.BytesIO(content))


def test_a_report_is_read_back() -> None:
    priced = row(end_user="ann", batch=True, requests=3, input_fresh=70, input_cache_read=30, cost=AMOUNT)
    table = read(report(priced, row(unpriced=1)).parquet())
    assert table.column_names == ["day", "project", "user", "batch", *SUMS]
    first, second = table.to_pylist()
    assert (first["day"], first["project"], first["user"], first["batch"]) == ("2026-11-02", "shop", "ann", True)
    assert (first["requests"], first["input_tokens"], first["cached_input_share"]) == (3, 100, 0.3)
    assert first["cost"] == AMOUNT
    assert (second["user"], second["cost"], second["charge"], second["saved"]) == (None, None, None, 0)


def test_a_report_without_usage_has_its_columns() -> None:
    table = read(report().parquet())
    assert (table.num_rows, table.column_names[0]) == (0, "day")


async def test_without_its_package_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(InvalidRequest, match=r"extra `parquet`") as caught:
        await load_pyarrow()
    assert caught.value.param == "format"
