"""The reference of the HTTP API, as Markdown from the OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from api.app import create_app
from api.settings import ApiSettings

Schema = dict[str, Any]
_MODELS = Path(__file__).resolve().parents[1] / "models.simulated.yaml"
_INTRODUCTION = """\
# HTTP API

Every endpoint, from the OpenAPI document of the server, which serves it as `/openapi.json` and as interactive pages at
`/docs`. Requests have the header `Authorization: Bearer KEY`. How the APIs of OpenAI and Anthropic are implemented is
described in [OpenAI](../openai.md), [Responses](../responses.md) and [Anthropic](../anthropic.md); the events of
streams in [Events](../events.md).

"""
_TITLES = {
    "jobs": "Jobs",
    "routes": "Routes",
    "openai": "OpenAI: chat completions, completions, models",
    "responses": "OpenAI: responses",
    "anthropic": "Anthropic: messages",
    "files": "Files",
    "batches": "Batches",
    "cache": "Response cache",
    "savings": "Savings",
    "evals": "Judges",
    "requests": "Request log",
    "workers": "Workers and queues",
    "keys": "Keys and projects",
    "limits": "Limits",
    "health": "Health",
    "console": "Console links",
}


def api_pages() -> dict[str, str]:
    """The pages by file name: an index, one for each tag, and the types that they refer to."""
    settings = ApiSettings(DATABASE_URL="postgresql://localhost/x", REDIS_URL="redis://localhost", models=_MODELS)
    return pages_of(create_app(settings).openapi())


def pages_of(document: dict[str, Any]) -> dict[str, str]:
    """The pages of an OpenAPI document."""
    by_tag: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            by_tag.setdefault(operation["tags"][0], []).append((method.upper(), path, operation))
    schemas: dict[str, Schema] = document["components"]["schemas"]
    headers: dict[str, Any] = document["components"]["headers"]
    pages = {f"{tag}.md": "".join(_tag_page(tag, found, schemas)) for tag, found in by_tag.items()}
    pages["types.md"] = "".join(_types_page(schemas))
    pages["index.md"] = "".join(_index(by_tag, headers))
    return pages


def _index(by_tag: dict[str, list[tuple[str, str, dict[str, Any]]]], headers: dict[str, Any]) -> Iterator[str]:
    yield _INTRODUCTION
    for tag, operations in by_tag.items():
        yield f"## {_title(tag)}\n\n| request | does |\n|---|---|\n"
        for method, path, operation in operations:
            yield f"| [`{method} {path}`]({tag}.md#{_anchor(method, path)}) | {_cell(_first_sentence(operation))} |\n"
        yield "\n"
    yield "## Headers of responses\n\n| header | meaning |\n|---|---|\n"
    for name, header in headers.items():
        yield f"| `{name}` | {_cell(header['description'])} |\n"


def _tag_page(tag: str, operations: list[tuple[str, str, dict[str, Any]]], schemas: dict[str, Schema]) -> Iterator[str]:
    yield f"# {_title(tag)}\n\n"
    for method, path, operation in operations:
        yield f"## {method} {path} {{ #{_anchor(method, path)} }}\n\n{operation.get('description', '').strip()}\n\n"
        if parameters := operation.get("parameters"):
            yield "| parameter | in | type | description |\n|---|---|---|---|\n"
            for one in parameters:
                name = f"`{one['name']}`" + (" (required)" if one["required"] and one["in"] != "path" else "")
                yield f"| {name} | {one['in']} | {_type(one['schema'])} | {_cell(one.get('description', ''))} |\n"
            yield "\n"
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            yield f"**Body** (`{kind}`): {_type(content['schema'])}\n\n"
            schema = _resolved(content["schema"], schemas)
            yield from _fields(schema)
            yield from _example(schema)
        yield "| status | body | meaning |\n|---|---|---|\n"
        for status, response in operation["responses"].items():
            bodies = [
                _type(content["schema"]) if content.get("schema") else f"`{kind}`"
                for kind, content in response.get("content", {}).items()
            ]
            yield f"| {status} | {', '.join(bodies)} | {_cell(response['description'])} |\n"
        yield "\n"


def _types_page(schemas: dict[str, Schema]) -> Iterator[str]:
    yield "# Types\n\nThe objects of requests and responses. A field without a default is required in requests.\n\n"
    for name, schema in sorted(schemas.items()):
        yield f"## {name} {{ #{name.lower()} }}\n\n"
        if description := schema.get("description"):
            yield f"{description.strip()}\n\n"
        if "properties" in schema:
            yield from _fields(schema)
        else:
            yield f"{_type(schema)}\n\n"


def _fields(schema: Schema) -> Iterator[str]:
    """A table of an object's fields."""
    if not schema.get("properties"):
        return
    required = schema.get("required", ())
    yield "| field | type | default | description |\n|---|---|---|---|\n"
    for name, field in schema["properties"].items():
        default = "required" if name in required else _default(field)
        yield f"| `{name}` | {_type(field)} | {default} | {_cell(field.get('description', ''))} |\n"
    yield "\n"


def _example(schema: Schema) -> Iterator[str]:
    if examples := schema.get("examples"):
        yield f"```json\n{json.dumps(examples[0], indent=2, ensure_ascii=False)}\n```\n\n"


def _type(schema: Schema) -> str:
    """The type of a value, with links to the types page."""
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](types.md#{name.lower()})"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            parts = dict.fromkeys(_type(part) for part in schema[key])
            return " or ".join(part for part in parts if part != "null") or "null"
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    return f"{kind}{_range(schema)}"


def _range(schema: Schema) -> str:
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    if low is not None and high is not None and abs(high) < 10**9:
        return f", {low:g} to {high:g}"
    return ""


def _default(schema: Schema) -> str:
    default = schema.get("default")
    return "" if default is None else f"`{json.dumps(default)}`"


def _resolved(schema: Schema, schemas: dict[str, Schema]) -> Schema:
    return schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _title(tag: str) -> str:
    return _TITLES.get(tag, tag.capitalize())


def _anchor(method: str, path: str) -> str:
    return "-".join([method.lower(), *(part.strip("{}").replace("_", "-") for part in path.split("/") if part)])


def _first_sentence(operation: dict[str, Any]) -> str:
    text: str = operation.get("description", operation["summary"]).strip().split("\n\n")[0]
    return text.partition(". ")[0].rstrip(".")


def _cell(text: str) -> str:
    """A text in a table's cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
