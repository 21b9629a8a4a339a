"""The estimate of xgrammar's time for strings: which are slow, and which would be refused."""

from __future__ import annotations

from typing import Any

import pytest

from workers.engines.vllm.slow_strings import MAX_WIDTH, SLOW_S, is_wide, schema_seconds, text_seconds

EMAIL = r"^[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,6}$"


def strings(*schemas: dict[str, Any]) -> dict[str, Any]:
    return {"properties": {f"p{number}": {"type": "string", **schema} for number, schema in enumerate(schemas)}}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        strings({}, {"minLength": 1}, {"maxLength": 2}),
        strings({"format": "date-time"}, {"format": "uuid"}, {"format": "uri"}),
        strings({"pattern": r"^\d{4}-\d{2}-\d{2}$"}),
        {"description": "maxLength", "enum": ["pattern"]},
        [[], None, {"maxLength": True}],
    ],
)
def test_strings_that_are_fast(schema: Any) -> None:
    assert schema_seconds(schema) <= SLOW_S


@pytest.mark.parametrize(
    ("schema", "at_least_s"),
    [
        (strings({"maxLength": 255}), 4),
        (strings({"maxLength": 65535}), 4),
        (strings({"minLength": 100}), 1),
        (strings(*({"maxLength": 100 + number} for number in range(8))), 16),
        (strings(*({"pattern": EMAIL} for _ in range(100))), 1.5),
        (strings(*({"format": "uri-template"} for _ in range(20))), 1.5),
        ({"$defs": {"x": [{"items": {"maxLength": 255}}]}}, 4),
        ({"patternProperties": {"^[^x]{1,100}$": {}}}, 1.5),
        ({"structures": [{"begin": "<a>", "schema": strings({"maxLength": 255})}]}, 4),
        ({"type": "grammar", "grammar": 'root ::= [^"]{1,100}'}, 1.5),
    ],
)
def test_strings_that_are_slow(schema: Any, at_least_s: float) -> None:
    """The measured seconds."""
    assert schema_seconds(schema) >= at_least_s


def test_each_length_counts_once() -> None:
    one = schema_seconds(strings({"maxLength": 255}))
    assert schema_seconds(strings(*({"maxLength": 255} for _ in range(20)))) == one


@pytest.mark.parametrize(
    ("text", "grammar", "seconds"),
    [
        ("[a-z]{1,100}", False, (0.2, 0.5)),
        ("[^x]{1,100}", False, (1.9, 2.5)),
        ("[a-zA-Z0-9 ]{1,100}", False, (1.1, 1.5)),
        (r"\d{3}-\d{4}", False, (0, SLOW_S)),
        ("root ::= " + "[^x] " * 300, True, (3, 4)),
        ("root ::= " + "[a-z] " * 300, True, (0.3, 0.5)),
        ("root ::= " + " | ".join(f'"choice {number}"' for number in range(5000)), True, (0, 0)),
        ('root ::= sum\nsum ::= term (("+" | "-") term)*\nterm ::= [0-9]{1,9} | "(" sum ")"', True, (0, SLOW_S)),
    ],
)
def test_a_regex_or_grammar(text: str, grammar: bool, seconds: tuple[float, float]) -> None:
    assert seconds[0] <= text_seconds(text, grammar=grammar) <= seconds[1]


def test_wide_schemas() -> None:
    wide: dict[str, Any] = {"properties": {f"p{number}": {} for number in range(MAX_WIDTH + 1)}}
    assert is_wide({"items": wide})
    assert not is_wide(strings(*({} for _ in range(MAX_WIDTH))))
