"""JSON of an upstream is decoded unless it has too many values, whatever its texts consist of."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from workers.engines.upstream.sse import MAX_VALUES, EventTooLarge, load_json


@pytest.mark.parametrize(
    "text",
    [
        "the mill, " * 400_000,
        'a "b", ' * 400_000,
        "\\," * 1_000_000,
        '\\",' * 400_000,
        "a,\n" * 400_000,
        "\t,\\" * 400_000,
    ],
    ids=["commas", "quotes", "backslashes", "both", "lines", "ends in a backslash"],
)
def test_a_long_text_is_one_value(text: str) -> None:
    value = {"input": {"prompt": text}, "output": ["a", "b"]}
    assert load_json(orjson.dumps(value)) == value
    assert load_json(json.dumps(value, indent=1).encode()) == value


@pytest.mark.parametrize(
    "value",
    [
        [1] * (MAX_VALUES + 2),
        ["a"] * (MAX_VALUES // 2 + 2),
        ["\\"] * (MAX_VALUES // 2 + 2),
        ['"'] * (MAX_VALUES // 2 + 2),
        ["x,\n" * 3] * (MAX_VALUES // 2 + 2),
        {f"k{number}": [1, 2, 3] for number in range(MAX_VALUES // 4)},
    ],
    ids=["numbers", "texts", "backslashes", "quotes", "commas", "objects"],
)
def test_many_values_are_refused(value: Any) -> None:
    for content in (orjson.dumps(value), json.dumps(value, indent=1).encode()):
        with pytest.raises(EventTooLarge):
            load_json(content)
