"""The smallest value that a JSON Schema takes, for the engine that has no model to write one.

Of formats and bounds it knows the usual ones. A `pattern` or a `not` is left unread: the value may miss it.
"""

from __future__ import annotations

import math
from typing import Any

WORD = "water"
FORMATS = {
    "date": "1970-01-01",
    "date-time": "1970-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "email": "mill@example.com",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
# A schema that asks for itself without an end has no value; this says so before Python's stack does.
MAX_DEPTH = 64


def json_sample(schema: Any, root: dict[str, Any] | None = None, depth: int = 0) -> Any:
    """A value for a schema; what is not required is left out.

    Raises:
        ValueError: there is none, or a `$ref` leads nowhere.
    """
    if depth > MAX_DEPTH:
        raise ValueError("it asks for itself without an end")
    if schema is False:
        raise ValueError("it takes no value")
    if not isinstance(schema, dict):
        return {}
    root = schema if root is None else root
    if "$ref" in schema:
        return json_sample(_pointed(root, schema["$ref"]), root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for either in ("anyOf", "oneOf"):
        if schema.get(either):
            return json_sample(_merged(schema, schema[either][0], either), root, depth + 1)
    if schema.get("allOf"):
        first, *rest = schema["allOf"]
        left = {**schema, "allOf": rest}
        return json_sample(_merged(left, first, "" if rest else "allOf"), root, depth + 1)
    match _type(schema):
        case "object":
            properties = schema.get("properties", {})
            return {
                name: json_sample(properties.get(name, {"type": "string"}), root, depth + 1)
                for name in schema.get("required", ())
            }
        case "array":
            items = [*schema.get("prefixItems", ())]
            items += [schema.get("items", {"type": "string"})] * (schema.get("minItems", 0) - len(items))
            return [json_sample(item, root, depth + 1) for item in items]
        case "string":
            return _text(schema)
        case "integer" | "number" as kind:
            return _number(schema, whole=kind == "integer")
        case "boolean":
            return False
        case _:
            return None


def _pointed(root: dict[str, Any], reference: str) -> Any:
    """What a `#/...` points at."""
    place: Any = root
    for step in reference.removeprefix("#").split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(place, dict) or name not in place:
            raise ValueError(f"$ref {reference!r} leads nowhere")
        place = place[name]
    return place


def _merged(schema: dict[str, Any], other: Any, without: str) -> dict[str, Any]:
    """Both schemas as one, less a keyword that has been dealt with."""
    base = {name: value for name, value in schema.items() if name != without}
    if not isinstance(other, dict):
        return base
    return {
        **base,
        **other,
        "required": [*dict.fromkeys([*base.get("required", ()), *other.get("required", ())])],
        "properties": {**base.get("properties", {}), **other.get("properties", {})},
    }


def _type(schema: dict[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0]
    if kind is None:
        kind = "array" if "items" in schema or "prefixItems" in schema else "object"
    return str(kind)


def _text(schema: dict[str, Any]) -> str:
    if schema.get("format") in FORMATS:
        return FORMATS[schema["format"]]
    shortest = schema.get("minLength", 0)
    return WORD[: schema.get("maxLength", len(WORD))].ljust(shortest, "r")


def _number(schema: dict[str, Any], *, whole: bool) -> int | float:
    """Zero, or what is nearest to it within the bounds."""
    step = schema.get("multipleOf", 1 if whole else 0.5)
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
    value: int | float = 0
    if low > 0 or (low == 0 and schema.get("exclusiveMinimum") == 0):
        value = math.ceil(low / step) * step
        if value == schema.get("exclusiveMinimum"):
            value += step
    elif high < 0 or (high == 0 and schema.get("exclusiveMaximum") == 0):
        value = math.floor(high / step) * step
        if value == schema.get("exclusiveMaximum"):
            value -= step
    return value
