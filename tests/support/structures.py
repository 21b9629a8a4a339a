"""Schemas, grammars and choices: ordinary ones, and those that would kill or stall an engine that compiles them."""

from __future__ import annotations

from typing import Any

Structure = dict[str, Any]


def record(count: int, schema: Any = None, *, required: int = 0) -> dict[str, Any]:
    """An object with so many properties."""
    properties = {f"property_{number}": schema or {"type": "string"} for number in range(count)}
    return {"type": "object", "properties": properties, "required": list(properties)[:required]}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def api(models: int) -> dict[str, Any]:
    """The schemas of an API, as generators of clients and tools write them."""
    definitions = {
        f"Model{number}": {
            "type": "object",
            "description": "One of the models of this API, with a description of the usual length.",
            "properties": {
                "id": {"type": "string", "format": "uuid"},
                "name": {"type": "string", "minLength": 1, "maxLength": 255},
                "slug": {"type": "string", "pattern": "^[a-z0-9-]{1,64}$"},
                "count": {"type": "integer", "minimum": 0, "maximum": 9_007_199_254_740_991},
                "price": {"type": "number", "multipleOf": 0.01},
                "state": {"enum": ["open", "closed", "merged", "draft"]},
                "labels": {"type": "array", "items": {"type": "string"}, "maxItems": 100, "uniqueItems": True},
                "next": {"anyOf": [{"$ref": f"#/$defs/Model{(number + 1) % models}"}, {"type": "null"}]},
                "code": {"type": "string", "pattern": "^[A-Z]{2,4}-[0-9]{1,6}$"},
            },
            "required": ["id", "name"],
            "additionalProperties": False,
        }
        for number in range(models)
    }
    return {"$defs": definitions, "$ref": "#/$defs/Model0"}


TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
        }
    },
    "$ref": "#/$defs/node",
}

ORDINARY: dict[str, Structure] = {
    "a person": {
        "json": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
            "required": ["name", "age"],
        }
    },
    "an API": {"json": api(50)},
    "500 optional properties": {"json": record(500)},
    "1000 required properties": {"json": record(1000, required=1000)},
    "a tree": {"json": TREE},
    "20 levels": {"json": nested(20)},
    "a map": {"json": {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1}},
    "a map by pattern": {"json": {"type": "object", "patternProperties": {"^[a-z]+$": {"type": "string"}}}},
    "1000 values": {"json": {"enum": [f"value {number}" for number in range(1000)]}},
    "lengths": {
        "json": {
            "type": "object",
            "properties": {
                f"field_{length}": {"type": "string", "maxLength": length}
                for length in (2, 10, 50, 100, 255, 500, 1000, 2000, 65535)
            },
        }
    },
    "many items": {"json": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 10_000}},
    "100 alternatives": {"json": {"anyOf": [record(3) | {"title": f"alternative {number}"} for number in range(100)]}},
    "e-mail addresses": {
        "json": record(100, {"type": "string", "pattern": "^[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\\.[a-zA-Z]{2,6}$"})
    },
    "choices": {"choice": [f"choice {number}" for number in range(1000)]},
    "a regex": {"regex": r"\d{3}-\d{4}|[A-Z][a-z]{0,63}"},
    "a grammar": {"grammar": 'root ::= sum\nsum ::= term (("+" | "-") term)*\nterm ::= [0-9]{1,9} | "(" sum ")"'},
    "a Lark grammar": {"grammar": 'start: (WORD " ")~1..20\nWORD: /[a-z]{1,10}/'},
}


def tools(count: int) -> dict[str, Any]:
    """The parameters of many tools, as agents send them, in one schema."""
    parameters = {
        "type": "object",
        "properties": {
            "path": {"type": "string", "description": "An absolute path.", "minLength": 1, "maxLength": 4096},
            "pattern": {"type": "string", "pattern": "^[^*?]+$"},
            "url": {"type": "string", "format": "uri"},
            "limit": {"type": "integer", "minimum": 1, "maximum": 2000},
            "mode": {"enum": ["content", "files_with_matches", "count"]},
            "edits": {"type": "array", "items": {"type": "object", "properties": {"old": {"type": "string"}}}},
        },
        "required": ["path"],
        "additionalProperties": False,
    }
    return {"anyOf": [{"title": f"mcp__server__tool_{number}", **parameters} for number in range(count)]}


DATE, UUID = r"^\d{4}-\d{2}-\d{2}$", "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
EMAIL = r"^[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}$"
FORMATS = ("email", "date", "time", "date-time", "duration", "ipv4", "ipv6", "hostname", "uuid", "uri")

ORDINARY |= {
    "60 tools": {"json": tools(60)},
    "20 strings of 2000": {"json": record(20, {"type": "string", "minLength": 1, "maxLength": 2000}, required=20)},
    "dates, e-mail addresses and ids by pattern": {
        "json": {
            "type": "object",
            "properties": {
                f"{name}_{number}": {"type": "string", "pattern": pattern}
                for number in range(10)
                for name, pattern in (("date", DATE), ("uuid", UUID), ("email", EMAIL))
            },
        }
    },
    "all formats": {
        "json": {
            "type": "object",
            "properties": {
                f"{name}_{number}": {"format": name, "type": "string"} for name in FORMATS for number in range(5)
            },
        }
    },
    "steps of a solution": {
        "json": {
            "type": "object",
            "properties": {
                "steps": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"explanation": {"type": "string"}, "output": {"type": "string"}},
                        "required": ["explanation", "output"],
                        "additionalProperties": False,
                    },
                },
                "final_answer": {"type": "string"},
            },
            "required": ["steps", "final_answer"],
            "additionalProperties": False,
        }
    },
    "parts of a user interface": {
        "json": {
            "type": "object",
            "properties": {
                "type": {"type": "string", "enum": ["div", "button", "header", "section", "field", "form"]},
                "label": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#"}},
                "attributes": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"name": {"type": "string"}, "value": {"type": "string"}},
                        "required": ["name", "value"],
                        "additionalProperties": False,
                    },
                },
            },
            "required": ["type", "label", "children", "attributes"],
            "additionalProperties": False,
        }
    },
}

# About the largest of each kind that the default bounds admit.
LARGEST: dict[str, Structure] = {
    "optional properties": {"json": record(600)},
    "required properties": {"json": record(3200, required=3200)},
    "items": {"json": {"type": "array", "items": {"type": "integer"}, "maxItems": 110_000}},
    "alternatives": {"json": {"anyOf": [record(3) | {"title": f"alternative {number}"} for number in range(1000)]}},
    "values": {"json": {"enum": [f"value {number}" for number in range(5000)]}},
    "5000 choices": {"choice": [f"choice {number}" for number in range(5000)]},
    "counted properties": {"json": {**record(60), "minProperties": 60}},
    "the most lengths": {
        "json": record(1, {"type": "string", "minLength": 100, "maxLength": 9000})
        | {"$defs": {f"s{number}": {"type": "string", "maxLength": 200 + number} for number in range(8)}}
    },
    "a long regex": {"regex": "[^x]{1,128}y[^x]{1,127}z[a-z]{1,128}"},
    "patterns": {"json": record(100, {"type": "string", "pattern": "^[^x]{1,128}y[a-z]{1,128}$"})},
}

HOSTILE: dict[str, Structure] = {
    "minItems of 2**31": {"json": {"type": "array", "items": {}, "minItems": 2147483648}},
    "a divisor and maxItems": {
        "json": {"type": "array", "items": {"type": "integer", "multipleOf": 3}, "maxItems": 1_000_000_000}
    },
    "minContains": {"json": {"type": "array", "contains": {"type": "null"}, "minContains": 1e12}},
    "a large divisor": {"json": {"type": "integer", "multipleOf": 1_000_003}},
    "divisors that are merged": {"json": {"allOf": [{"type": "integer", "multipleOf": 7919}, {"multipleOf": 7907}]}},
    "2500 properties twice": {"json": {"type": "object", "properties": {"a": record(2500), "b": record(2500)}}},
    "counted properties": {"json": {**record(200), "minProperties": 100}},
    "20 arrays": {
        "json": record(20, {"type": "array", "items": {"type": "integer", "multipleOf": 3}, "maxItems": 10_000})
    },
    "nested repetitions in a pattern": {"json": {"type": "string", "pattern": "(a{1000}){1000}"}},
    "a long repetition in a pattern": {"json": {"type": "string", "pattern": "^(a|b|c|d){1,5000}$"}},
    "an endless number": {"json": {"type": "string", "pattern": "a{" + "9" * 200 + "}"}},
    "many lengths": {
        "json": {"type": "object", "properties": {f"p{n}": {"type": "string", "maxLength": 100 + n} for n in range(40)}}
    },
    "in a definition": {"json": {"$defs": {"x": {"type": "array", "minItems": 10**9}}, "$ref": "#/$defs/x"}},
    "in an unknown member": {"json": {"other": {"x": {"type": "array", "minItems": 10**9}}, "$ref": "#/other/x"}},
    "levels": {"json": nested(70)},
    "3000 alternatives": {"json": {"anyOf": [record(2) for _ in range(3000)]}},
    "40,000 values": {"json": {"enum": [f"value {number}" for number in range(40_000)]}},
    "a long constant": {"json": {"const": "ab c" * 25_000}},
    "a schema that needs a third backend": {
        "json": {"type": "object", "patternProperties": {"^a": {}}, "properties": {"x": {"type": "string"}}}
    },
    "40,000 choices": {"choice": [f"choice {number}" for number in range(40_000)]},
    "long choices": {"choice": [f"{number}" + "x" * 1000 for number in range(200)]},
    "nested repetitions in a regex": {"regex": "(a{1000}){1000}"},
    "deep groups": {"regex": "(" * 5000 + "a" + ")" * 5000},
    "a long regex": {"regex": "ab" * 200_000},
    "repetitions in a grammar": {"grammar": 'root ::= (("a" | "b"){1000}){1000}'},
    "repetitions in a Lark grammar": {"grammar": 'start: ("a"~1000)~1000'},
    "a regex in a Lark grammar": {"grammar": "start: /(a{1000}){1000}/"},
    "a huge repetition in a grammar": {"grammar": 'root ::= "a"{0,2147483647}'},
    "a long grammar": {"grammar": "root ::= " + " | ".join(f'"choice {number}"' for number in range(40_000))},
    "a structural tag": {
        "structural_tag": '{"structures": [{"begin": "<a>", "end": "</a>", "schema": {"type": "array", "minItems":'
        ' 2147483648}}], "triggers": ["<a>"]}'
    },
    "a regex in a structural tag": {
        "structural_tag": '{"type": "structural_tag", "format": {"type": "regex", "pattern": "(a{1000}){1000}"}}'
    },
}
