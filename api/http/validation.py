"""Formats validation errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shared.domain.field_types import message_of

# pydantic's error types for a value that is not an object.
NOT_AN_OBJECT = ("model_attributes_type", "model_type", "dict_type")


def describe(problems: Sequence[Any]) -> tuple[str, str | None]:
    """A message about the first error, and the path of its field (None for the body as a whole)."""
    problem = problems[0]
    if tuple(problem["loc"]) == ("body",) and problem["type"] in ("missing", *NOT_AN_OBJECT):
        return "The body must be a JSON object, sent with `Content-Type: application/json`.", None
    if problem["type"] == "string_unicode" and len(problem["loc"]) == 1:
        return "A parameter name is not valid Unicode: it has an unpaired surrogate.", None
    if problem["type"] == "json_invalid":
        return f"The body is not valid JSON: {problem.get('ctx', {}).get('error', problem['msg'])}.", None
    path = [step for step in problem["loc"] if step not in ("body", "query", "path", "header") and not _is_tag(step)]
    field = ""
    for step in path:
        field += f"[{step}]" if isinstance(step, int) else f".{step}" if field else str(step) or "''"
    message = message_of(problem)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if problem["type"] == "contradiction":
        param = problem["ctx"]["param"]
        return f"{message}{more}", f"{field}.{param}" if field else param
    if problem["type"] in NOT_AN_OBJECT:
        message = "must be an object"
    elif problem["type"] == "extra_forbidden":
        message = "this parameter is unknown or not supported"
    elif problem["type"] == "missing":
        message = "this field is required"
    return (f"{field}: {message}{more}" if field else f"{message}{more}"), field or None


def _is_tag(step: int | str) -> bool:
    """Whether a step is not a field but a union's tag, which the schemas write as `<text>`."""
    return isinstance(step, str) and step.startswith("<") and step.endswith(">")
