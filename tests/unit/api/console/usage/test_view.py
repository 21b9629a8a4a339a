"""The time range of the page of usage, and its chart."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from api.console.filters import NONE
from api.console.usage.periods import buckets_until
from api.console.usage.view import OTHERS, build_view
from shared.postgres.usage_sums import VALUES

BERLIN, UTC_ZONE = ZoneInfo("Europe/Berlin"), ZoneInfo("UTC")
NOW = datetime(2026, 10, 25, 12, 30, tzinfo=UTC)


def row(period: int, model: str, **values: Any) -> Any:
    amounts = {"cost": Decimal(0), "charge": Decimal(0), "saved": Decimal(0)}
    return SimpleNamespace(period=period, model=model, **{**dict.fromkeys(VALUES, 0), **amounts, **values})


def total(rows: list[Any]) -> Any:
    return SimpleNamespace(**{name: sum(getattr(one, name) for one in rows) for name in VALUES})


def test_days_begin_in_the_time_zone_and_may_have_25_hours() -> None:
    buckets = buckets_until(NOW, "7d", BERLIN)
    assert len(buckets.labels) == 7
    assert buckets.labels[-1] == "25 Oct"
    assert buckets.periods.starts[-1] == datetime(2026, 10, 24, 22, tzinfo=UTC)
    assert buckets.periods.end == datetime(2026, 10, 25, 23, tzinfo=UTC)
    assert buckets_until(NOW, "7d", UTC_ZONE).periods.starts[-1] == datetime(2026, 10, 25, tzinfo=UTC)


def test_the_last_hour_is_that_of_now() -> None:
    buckets = buckets_until(NOW, "24h", BERLIN)
    assert (buckets.periods.starts[-1].hour, buckets.labels[-1]) == (12, "25 Oct, 13:00")
    assert buckets.periods.names[-1] == "2026-10-25T13:00"


@pytest.mark.parametrize("is_operator", [True, False])
def test_bars_are_stacked_by_model(is_operator: bool) -> None:
    name = "cost" if is_operator else "charge"
    buckets = buckets_until(NOW, "7d", UTC_ZONE)
    rows = [row(0, "a", **{name: Decimal(3)}), row(0, "b", **{name: Decimal(1)}), row(6, "b", **{name: Decimal(2)})]
    view = build_view(rows, total(rows), buckets, [], is_operator=is_operator)
    assert view.legend == [("a", 0), ("b", 1)]
    assert [part[:2] for part in view.bars[0].parts] == [(0.0, 0.75), (0.75, 0.25)]
    assert view.bars[6].parts[0][:2] == (0.0, 0.5)
    assert view.bars[1].parts == []
    assert view.bars[0].text == "19 Oct: $4.00\na: $3.00\nb: $1.00"
    assert view.peak == "at most $4.00, on 19 Oct"
    assert view.stats[0].quantity.number == "$6.00"


def test_what_was_saved_is_not_0_if_it_is_not_known() -> None:
    buckets = buckets_until(NOW, "7d", UTC_ZONE)
    rows = [row(0, "a", saved=Decimal(3)), row(6, "b", saved=None)]
    sums = SimpleNamespace(**{**vars(total(rows[:1])), "saved": None})
    saved = build_view(rows, sums, buckets, [], is_operator=True).stats[-1]
    assert (saved.title, saved.quantity.number, saved.trend) == ("Saved", NONE, [3.0, *[0.0] * 6])


def test_models_beyond_the_fourth_share_a_shade() -> None:
    rows = [row(0, str(number), charge=Decimal(10 - number)) for number in range(6)]
    view = build_view(rows, total(rows), buckets_until(NOW, "7d", UTC_ZONE), [], is_operator=False)
    assert view.legend == [("0", 0), ("1", 1), ("2", 2), ("3", 3), (OTHERS, 4)]
    assert [part.shade for part in view.bars[0].parts] == [0, 1, 2, 3, 4]
    assert sum(part.height for part in view.bars[0].parts) == pytest.approx(1)


def test_corrections_that_lower_amounts_do_not_break_the_chart() -> None:
    rows = [row(0, "a", charge=Decimal(-1)), row(1, "b", charge=Decimal(0))]
    view = build_view(rows, total(rows), buckets_until(NOW, "7d", UTC_ZONE), [], is_operator=False)
    assert all(bar.parts == [] for bar in view.bars)


def test_what_has_no_price_is_not_free() -> None:
    rows = [row(0, "a", requests=2, attempts=2, unpriced=2)]
    view = build_view(rows, total(rows), buckets_until(NOW, "7d", UTC_ZONE), [], is_operator=True)
    assert (view.unpriced, view.stats[0].quantity.number) == (2, "–")
