"""Estimates what xgrammar needs for the strings of a schema, regex or grammar.

It computes in advance which tokens each state of a grammar allows. For strings with lengths or patterns, most states
allow most tokens, and there is a state for each character. Measured with a vocabulary of 131,072 tokens
(docs/decisions/engines.md); smaller ones take less.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from shared.domain.regex_states import LONGEST_TOKEN, RegexSize, measure

# Seconds of one core: for each character up to the longest token, and each repetition of a class.
PER_LENGTH_S = 0.033
PER_WIDE_REPEAT_S = 0.02
PER_CLASS_REPEAT_S = 0.012
PER_NARROW_REPEAT_S = 0.0025
PER_WIDE_ITEM_S = 0.01
PER_CLASS_ITEM_S = 0.001
PER_PATTERN_S = 0.015
PER_FORMAT_S = {
    "uri-template": 0.085, "email": 0.03, "uri": 0.03, "uri-reference": 0.03, "hostname": 0.01, "json-pointer": 0.015,
}  # fmt: skip
# llguidance compiles strings of more than this, if it supports the rest.
SLOW_S = 0.1
# More properties, alternatives or values than this in one place exceed a limit of llguidance.
MAX_WIDTH = 200
_WIDE_MEMBERS = ("properties", "anyOf", "oneOf", "enum")


def schema_seconds(schema: Any) -> float:
    """Seconds that xgrammar needs for the strings of a JSON Schema or structural tag. Each length counts once."""
    lengths: set[tuple[Any, Any]] = set()
    total = 0.0
    for node in _objects(schema):
        low, high = _length(node.get("minLength")), _length(node.get("maxLength"))
        if max(low, high) > 1 and (low, high) not in lengths:
            lengths.add((low, high))
            total += PER_LENGTH_S * min(max(low, high), LONGEST_TOKEN)
        for name in ("pattern", "regex"):
            if isinstance(text := node.get(name), str):
                total += PER_PATTERN_S + text_seconds(text)
        if isinstance(patterns := node.get("patternProperties"), dict):
            total += sum(PER_PATTERN_S + text_seconds(text) for text in patterns)
        for name in ("grammar", "ebnf", "lark"):
            if isinstance(text := node.get(name), str):
                total += text_seconds(text, grammar=True)
        if isinstance(format_ := node.get("format"), str):
            total += PER_FORMAT_S.get(format_, 0.001)
    return total


def text_seconds(text: str, *, grammar: bool = False) -> float:
    """Seconds that xgrammar needs for the classes and repetitions in a regex, or in a grammar."""
    size = RegexSize()
    for _ in measure(text, size, grammar=grammar):
        pass
    return (
        PER_WIDE_REPEAT_S * size.wide
        + PER_CLASS_REPEAT_S * size.classes
        + PER_NARROW_REPEAT_S * size.narrow
        + PER_WIDE_ITEM_S * size.wide_items
        + PER_CLASS_ITEM_S * size.class_items
    )


def is_wide(schema: Any) -> bool:
    """Whether a schema has more properties, alternatives or values in one place than llguidance supports."""
    return any(
        isinstance(node.get(name), list | dict) and len(node[name]) > MAX_WIDTH
        for node in _objects(schema)
        for name in _WIDE_MEMBERS
    )


def _objects(schema: Any) -> Iterator[dict[str, Any]]:
    stack = [schema]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            yield node
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)


def _length(value: Any) -> float:
    return float(min(value, 1e9)) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
