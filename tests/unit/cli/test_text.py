"""Text that models and clients have written does not control the terminal; numbers have units."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from cli.text import age, duration, one_line, rate, size, to_json, with_param, without_controls


def test_answers_keep_their_lines_and_lose_control_characters() -> None:
    text = "a\tb\n\x1b[31mred\x1b]0;title\x07\x9b2J\x7f\r\u00e9\u4e2d\U0001f600"
    assert without_controls(text) == "a\tb\n[31mred]0;title2J\u00e9\u4e2d\U0001f600"


def test_cells_of_tables_are_one_line_in_the_order_of_their_characters() -> None:
    assert one_line("a\nb\tc\x1b[2J\u2028d\u202ee") == "a b c [2J d e"


@pytest.mark.parametrize(
    ("message", "param", "text"),
    [
        ("must be positive", "limit", "must be positive (limit)"),
        ("There is none.", "model", "There is none (model)."),
        ("limit: must be positive", "limit", "limit: must be positive"),
        ("There is none.", None, "There is none."),
    ],
)
def test_errors_name_the_parameter_before_the_full_stop(message: str, param: str | None, text: str) -> None:
    assert with_param(message, param) == text


@pytest.mark.parametrize("text", ["\x1b[2J", "\x7f", "\x9b", "\u2028", "\ud800", "\u00e9 \u4e2d", 'quote"\\'])
def test_json_has_no_control_characters_and_the_same_value(text: str) -> None:
    encoded = to_json({"text": text})
    assert json.loads(encoded) == {"text": text}
    assert encoded.isprintable()
    encoded.encode()


def test_json_is_readable() -> None:
    assert to_json({"a": "é中"}) == '{"a": "é中"}'


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"), (0, "0 ms"), (0.2126, "213 ms"), (0.9996, "1.00 s"), (1.239, "1.24 s"), (9.996, "10.0 s"),
        (59.97, "1 min 0 s"), (200, "3 min 20 s"), (3600, "1 h 0 min"), (7500, "2 h 5 min"), (356_400, "4 d 3 h"),
    ],
)  # fmt: skip
def test_durations_have_the_unit_that_fits(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0 s"), (12, "12 s"), (300, "5 min"), (7200, "2 h"), (90_000, "1 d")]
)
def test_ages_have_one_unit(seconds: float, text: str) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert age(now.timestamp() - seconds, now) == text
    assert age(datetime.fromtimestamp(now.timestamp() - seconds, UTC).isoformat(), now) == text


def test_sizes_and_speeds() -> None:
    assert [size(number) for number in (17, 1500, 2_340_000, 7_000_000_000)] == ["17 B", "1.5 kB", "2.3 MB", "7.0 GB"]
    assert [rate(61.25), rate(None)] == ["61.2 tokens/s", "-"]
