"""Creates a minimal value for a JSON Schema.

The common formats and bounds are supported. `pattern` and `not` are ignored, so the value may violate them.
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
# An endlessly recursive schema has no value; this limit is reached before Python's recursion limit.
MAX_DEPTH = 64


def json_sample(schema: Any, root: dict[str, Any] | None = None, depth: int = 0) -> Any:
    """A value for a schema, with the required properties only.

    Raises:
        ValueError: the schema has no value, or a `$ref` cannot be resolved.
    """
    if depth > MAX_DEPTH:
        raise ValueError("it is endlessly recursive")
    if schema is False:
        raise ValueError("it accepts no value")
    if not isinstance(schema, dict):
        return {}
    root = schema if root is None else root
    if "$ref" in schema:
        return json_sample(_resolved(root, schema["$ref"]), root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for keyword in ("anyOf", "oneOf"):
        if schema.get(keyword):
            return json_sample(_merged(schema, schema[keyword][0], keyword), root, depth + 1)
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


def _resolved(root: dict[str, Any], reference: str) -> Any:
    """The target of a reference such as `#/$defs/name`."""
    target: Any = root
    for step in reference.removeprefix("#").split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(target, dict) or name not in target:
            raise ValueError(f"$ref {reference!r} cannot be resolved")
        target = target[name]
    return target


def _merged(schema: dict[str, Any], other: Any, without: str) -> dict[str, Any]:
    """Both schemas combined, without a keyword that has been applied."""
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
    """Zero, or the number within the bounds that is closest to zero."""
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
