"""Minimal values of schemas, checked with jsonschema."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from workers.engines.simulated.json_sample import json_sample

SCHEMAS: list[dict[str, Any]] = [
    {},
    {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]},
    {"type": "object", "required": ["anything"]},
    {"type": "string", "minLength": 8},
    {"type": "string", "maxLength": 2},
    {"type": "string", "format": "date-time"},
    {"type": "string", "enum": ["celsius", "kelvin"]},
    {"const": {"a": [1]}},
    {"type": "integer", "minimum": 3},
    {"type": "integer", "exclusiveMinimum": 3},
    {"type": "integer", "exclusiveMinimum": 0},
    {"type": "integer", "maximum": -3},
    {"type": "integer", "minimum": 5, "multipleOf": 4},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"type": "number", "exclusiveMaximum": 0},
    {"type": ["integer", "null"]},
    {"type": "null"},
    {"type": "boolean"},
    {"type": "array", "items": {"type": "integer", "minimum": 2}, "minItems": 2},
    {"prefixItems": [{"type": "boolean"}, {"type": "null"}], "minItems": 3},
    {"anyOf": [{"type": "integer"}, {"type": "string"}]},
    {"oneOf": [{"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}, {"type": "string"}]},
    {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"b": {"type": "boolean"}}, "required": ["b"]},
        ]
    },
    {
        "$defs": {"point": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/point"}},
        "required": ["at"],
    },
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_value_is_valid(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(schema).validate(json_sample(schema))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"$ref": "#/$defs/lost"}, "cannot be resolved"),
        ({"$ref": "#"}, "endlessly recursive"),
        ({"type": "array", "items": False, "minItems": 1}, "no value"),
    ],
)
def test_schemas_without_a_value(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        json_sample(schema)
