"""How values are written on pages."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from decimal import Decimal

import pytest

from api.console import filters


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0, "0 ms"),
        (0.0004, "0.4 ms"),
        (0.00994, "9.9 ms"),
        (0.00995, "10 ms"),
        (0.184, "184 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (99.4, "99 s"),
        (99.6, "1 min 40 s"),
        (120, "2 min"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h"),
        (12_000, "3 h 20 min"),
        (86_399, "1 d"),
        (86_400 * 4 + 3600 * 5, "4 d 5 h"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert filters.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (970, "970"),
        (999, "999"),
        (999.6, "1.0k"),
        (1204, "1.2k"),
        (9_960, "10k"),
        (48_200, "48k"),
        (999_600, "1.0M"),
        (3_140_000, "3.1M"),
        (2.5e9, "2.5B"),
    ],
)
def test_compact(value: float | None, text: str) -> None:
    assert filters.compact(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0"), (1204, "1,204"), (0.25, "0.25"), (12.34, "12.3"), (1_000_000.0, "1,000,000")],
)
def test_number(value: float | None, text: str) -> None:
    assert filters.number(value) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (None, "–"), (0, "$0"), (3, "$3.00"), ("1204.5", "$1,204.50"), ("0.5", "$0.50"), ("0.0042", "$0.0042"),
        ("0.00000002", "$0.000000020"), ("-1.2", "−$1.20"),
    ],
)  # fmt: skip
def test_money(amount: str | int | None, text: str) -> None:
    assert filters.money(None if amount is None else Decimal(amount)) == text


@pytest.mark.parametrize(("share", "text"), [(None, "–"), (0, "0 %"), (0.004, "0.4 %"), (0.62, "62 %"), (1, "100 %")])
def test_percent(share: float | None, text: str) -> None:
    assert filters.percent(share) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0 B"), (512, "512 B"), (1536, "1.5 KiB"), (12 << 20, "12 MiB"), (1 << 50, "1024 TiB")],
)
def test_size(value: int | None, text: str) -> None:
    assert filters.size(value) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 jobs"), (1, "1 job"), (1204, "1,204 jobs"), (None, "– jobs")])
def test_plural(count: int | None, text: str) -> None:
    assert filters.plural(count, "job") == text


def test_times_are_in_utc_until_a_script_rewrites_them() -> None:
    moment = datetime(2026, 11, 30, 16, 2, 11, 500_000, tzinfo=timezone(timedelta(hours=2)))
    exact = "2026-11-30T14:02:11.500Z"
    assert filters.time(moment) == (f'<time datetime="{exact}" data-style="time" title="{exact}">14:02:11</time>')
    assert "30 Nov 2026, 14:02:11" in filters.time(moment, "full")
    assert "30 Nov 2026<" in filters.time(moment, "day")
    assert filters.time(None) == "–"


def test_ids_are_shortened_and_copied_whole() -> None:
    job = "job_01a2241efee57c8dbf1f5fdcb111eaaf"
    assert filters.short_id(job) == "job_01a2241e…11eaaf"
    assert filters.short_id("file-01a2241efee57c8dbf1f5fdcb111eaaf_eu") == "file-01a2241e…11eaaf_eu"
    assert filters.short_id("key_12") == "key_12"
    assert f'data-copy="{job}"' in filters.copyable(job)


def test_names_in_messages_are_code() -> None:
    assert filters.coded("The key has no `admin` scope.") == "The key has no <code>admin</code> scope."
    assert filters.coded("`a` and `b`, but not `c") == "<code>a</code> and <code>b</code>, but not `c"
    assert filters.coded("`` ` ``") == "`` ` ``".replace("` `", "<code> </code>")


def test_markup_in_values_is_escaped() -> None:
    hostile = '"><script>alert(1)</script>'
    assert "<script>" not in filters.coded(f"`{hostile}` {hostile}")
    assert "<script>" not in filters.copyable(hostile)
    assert filters.copyable(hostile).count('"') == filters.copyable("x").count('"')


def line_of(*values: float | None) -> str:
    """The path of a trend's line."""
    return filters.sparkline(values).partition('class="spark-line" d="')[2].partition('"')[0]


def test_sparklines_have_gaps_where_there_are_no_values() -> None:
    assert line_of(0, 10) == "M0.0 36.0 L200.0 4.7"
    assert line_of(0, 0, 0) == "M0.0 36.0 L100.0 36.0 L200.0 36.0"
    assert line_of(10, None, 0, 0, None) == "M0.0 4.7 L0.0 4.7 M100.0 36.0 L150.0 36.0"
    assert line_of(None, None) == line_of() == ""
