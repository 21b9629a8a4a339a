"""Bounds on structured outputs: an estimate of what an engine needs to compile a schema, grammar or list of choices.

Engines compile them in a process that they share with other requests, on threads that cannot be cancelled. The estimate
is one pass over the input, in small steps. It predicts microseconds of the slower of vLLM's usual backends, xgrammar
and llguidance, with a vocabulary of 131,072 tokens. Strings with lengths or patterns are compiled by llguidance in any
case (`workers.engines.vllm.structure_backend`). How it was calibrated is in docs/decisions/engines.md. References are
not followed: the backends compile each definition once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Field

from shared.domain.errors import InvalidRequest
from shared.domain.regex_states import LONGEST_TOKEN, MAX_GROUPS, RegexSize, measure
from shared.domain.request import GenerateRequest, StructuredOutputs

# Nodes of a schema between two steps of an estimate.
STEP_NODES = 500
STEP_CHOICES = 250

# Microseconds (`docs/decisions/engines.md`).
PER_OBJECT = 20
PER_VALUE = 2
PER_CHOICE = 15
PER_LITERAL_BYTE = 10
PER_SHARED_BYTE_SQUARED = 4e-5
PER_OPTIONAL_PAIR = 1.5
PER_COUNTED_PAIR = 2.5
PER_ALTERNATIVE_PAIR = 0.5
PER_PROPERTY_PAIR = 0.04
PER_MIN_ITEM = 1
PER_MAX_ITEM = 8
PER_DIVISOR = 4
PER_LENGTH = 800
PER_WIDE_REPEAT = 2500
PER_CLASS_REPEAT = 1000
PER_PATTERN_STATE_SQUARED = 0.05
PER_STATE = 3

# vLLM compiles a schema with `patternProperties` by a third backend, Outlines, if it has something that xgrammar does
# not support. That takes seconds for the smallest schemas.
UNSUPPORTED = ("multipleOf", "uniqueItems", "contains", "minContains", "maxContains", "propertyNames")
PATTERN_PROPERTIES = (
    "patternProperties cannot be combined with {}, because no engine compiles that fast enough. Omit one of them"
)

FORMATS = (
    "email", "date", "time", "date-time", "duration", "ipv4", "ipv6", "hostname", "uuid", "uri", "uri-reference",
    "uri-template", "json-pointer", "relative-json-pointer",
)  # fmt: skip
_UNSUPPORTED_PATTERN = re.compile(r"\\[pPbB1-9]|\(\?[^:]")
ALTERNATIVES = ("anyOf", "oneOf", "allOf")
ITEM_COUNTS = {"minItems": PER_MIN_ITEM, "minContains": PER_MIN_ITEM, "maxItems": PER_MAX_ITEM,
               "maxContains": PER_MAX_ITEM}  # fmt: skip


class StructureBounds(BaseModel):
    """The bounds of one model."""

    model_config = ConfigDict(extra="forbid", strict=True)

    max_bytes: int = Field(256 * 1024, ge=1, description="Size of the schemas, grammar, regex or choices of a request.")
    max_depth: int = Field(64, ge=1, description="Nested objects and arrays of a schema.")
    max_choices: int = Field(5000, ge=1, description="Choices, and values of `enum`, in total.")
    max_states: int = Field(1_000_000, ge=1, description="Estimated states of the compiled grammar.")


class _Entry(NamedTuple):
    """A value in a schema, with the entries that contain it."""

    value: Any
    key: str | int
    parent: _Entry | None
    depth: int


class StructureSize:
    """Estimates one request's structured output and checks it against bounds."""

    def __init__(self, bounds: StructureBounds, param: str, *, lazy_strings: bool = False) -> None:
        """`param`: the parameter to name in errors. `lazy_strings`: lengths and patterns cost nothing."""
        self.states = 0.0
        self._bounds = bounds
        self._param = param
        self._per_string = 0.0 if lazy_strings else 1.0
        self._bytes = 0
        self._choices = 0
        self._lengths: set[tuple[Any, Any]] = set()
        self._patterns: set[str] = set()
        self._divisors: set[int] = set()
        self._merges = False
        self._pattern_properties: _Entry | None = None
        self._unsupported: str | None = None

    def check(self, structure: StructuredOutputs) -> Iterator[None]:
        """Add a structured output; yields between steps. Raises `InvalidRequest` if a bound is exceeded."""
        if structure.json_schema is not None:
            yield from self.check_schema(structure.json_schema, "json schema")
        if structure.structural_tag is not None:
            self._count_bytes(len(structure.structural_tag))
            try:
                tag = orjson.loads(structure.structural_tag)
            except orjson.JSONDecodeError:
                return  # the engine rejects it
            yield from self.check_schema(tag, "structural tag")
        if structure.regex is not None:
            yield from self._check_text(structure.regex, "regex")
        if structure.grammar is not None:
            yield from self._check_text(structure.grammar, "grammar", grammar=True)
        if structure.choice is not None:
            yield from self._check_literals(structure.choice, "choice")

    def check_schema(self, schema: Any, name: str | int) -> Iterator[None]:
        """Add a JSON Schema, as `check`. All its objects count as schemas, since references may point to any."""
        self._pattern_properties = self._unsupported = None
        # Iterators instead of nodes, so that a step does not grow with the length of a list.
        stack = [iter([_Entry(schema, name, None, 1)])]
        nodes = 0
        while stack:
            nodes += 1
            if nodes % STEP_NODES == 0:
                yield
            entry = next(stack[-1], None)
            if entry is None:
                stack.pop()
                continue
            value = entry.value
            self._count_bytes(len(value) if isinstance(value, str) else 4)
            if not isinstance(value, dict | list):
                continue
            if entry.depth > self._bounds.max_depth:
                raise self._error(
                    f"is nested more than {self._bounds.max_depth} levels deep. Flatten it, or use $ref", entry
                )
            if isinstance(value, dict):
                yield from self._check_object(value, entry)
                self._count_bytes(sum(map(len, value)))
                stack.append(_children(entry, value.items()))
            else:
                self._add(PER_VALUE * len(value), "too many values", entry)
                stack.append(_children(entry, enumerate(value)))

    def _check_fallback(self, node: dict[str, Any], entry: _Entry) -> None:
        """Refuse `patternProperties` in a schema with something that xgrammar does not support."""
        patterns = node.get("patternProperties")
        if isinstance(patterns, dict) and patterns:
            self._pattern_properties = entry
            if isinstance(node.get("properties"), dict):
                self._unsupported = "properties"
            elif len(patterns) > 1:
                self._unsupported = "a second pattern"
        if self._unsupported is None:
            self._unsupported = _unsupported(node)
        if self._pattern_properties is not None and self._unsupported is not None:
            raise self._error(PATTERN_PROPERTIES.format(self._unsupported), self._pattern_properties)

    def _check_object(self, node: dict[str, Any], entry: _Entry) -> Iterator[None]:
        self._add(PER_OBJECT, "too many schemas", entry)
        for name, cost in ITEM_COUNTS.items():
            if (count := _count(node.get(name))) > 1:
                self._add(cost * count, f"{name} {_shown(node[name])} is too large. Lower or omit it", entry)
        self._check_fallback(node, entry)
        self._check_properties(node, entry)
        self._check_length(node, entry)
        self._check_divisor(node, entry)
        for name in ALTERNATIVES:
            if isinstance(branches := node.get(name), list):
                complex_ = sum(isinstance(branch, dict) and "const" not in branch for branch in branches)
                self._add(PER_ALTERNATIVE_PAIR * complex_**2, f"{name} has too many schemas: {len(branches)}", entry)
        if isinstance(values := node.get("enum"), list):
            yield from self._check_literals(
                [item if isinstance(item, str) else str(item)[:64] for item in values], "enum", entry
            )
        if isinstance(value := node.get("const"), str):
            yield from self._check_literals([value], "const", entry, counted=False)
        for name in ("pattern", "regex"):
            if isinstance(pattern := node.get(name), str):
                yield from self._check_pattern(pattern, name, entry)
        if isinstance(patterns := node.get("patternProperties"), dict):
            for pattern in patterns:
                yield from self._check_pattern(pattern, "patternProperties", entry)
        for name in ("grammar", "ebnf", "lark"):
            if isinstance(grammar := node.get(name), str):
                yield from self._check_text(grammar, name, grammar=True, entry=entry)

    def _check_properties(self, node: dict[str, Any], entry: _Entry) -> None:
        properties = node.get("properties")
        if not isinstance(properties, dict):
            return
        required = node.get("required")
        names = {item for item in required if isinstance(item, str)} if isinstance(required, list) else set()
        optional = len(properties.keys() - names)
        cost = PER_OPTIONAL_PAIR * optional**2 * (1 + optional / 1000)
        message = f"has {optional} optional properties. List them in `required`, or split the object"
        counts = [min(count, len(properties)) for name in ("minProperties", "maxProperties")
                  if (count := _count(node.get(name)))]  # fmt: skip
        if counts:
            counted = PER_COUNTED_PAIR * len(properties) ** 2 * max(counts)
            if counted > cost:
                cost, message = counted, "minProperties or maxProperties with so many properties. Omit it"
        cost += PER_PROPERTY_PAIR * len(properties) ** 2 + PER_LITERAL_BYTE * sum(map(len, properties))
        self._add(cost, message, entry)

    def _check_length(self, node: dict[str, Any], entry: _Entry) -> None:
        low, high = _count(node.get("minLength")), _count(node.get("maxLength"))
        longest = max(low, high)
        if longest <= 1 or (low, high) in self._lengths:
            return
        self._lengths.add((low, high))
        cost = self._per_string * PER_LENGTH * min(longest, LONGEST_TOKEN) * (1.5 if low > 1 and high else 1)
        self._add(cost, "too many different values of minLength and maxLength. Use the same for more strings", entry)

    def _check_divisor(self, node: dict[str, Any], entry: _Entry) -> None:
        self._merges = self._merges or "allOf" in node or "$ref" in node
        divisor = node.get("multipleOf")
        if isinstance(divisor, bool) or not isinstance(divisor, int | float) or not math.isfinite(divisor):
            return
        digits = int("".join(map(str, Decimal(str(abs(divisor))).normalize().as_tuple().digits)))
        if digits <= 1 or digits in self._divisors:
            return
        self._divisors.add(digits)
        # Schemas that are merged have the least common multiple.
        states = math.lcm(*self._divisors) if self._merges and len(self._divisors) < 100 else digits
        if self._merges and len(self._divisors) >= 100:
            states = 10**9
        cost = PER_DIVISOR * min(states, 10**12) * (1 + min(states, 10**12) / 300_000)
        self._add(cost, f"multipleOf {_shown(divisor)} needs too many states. Use a smaller one, or omit it", entry)

    def _check_pattern(self, pattern: str, name: str, entry: _Entry) -> Iterator[None]:
        """Add an expression for a string in JSON."""
        if pattern in self._patterns:
            return
        self._patterns.add(pattern)
        size = RegexSize()
        yield from measure(pattern, size)
        cost = PER_PATTERN_STATE_SQUARED * size.states**2 + self._repeats(size) + PER_STATE * len(pattern)
        cost *= self._per_string
        self._check_groups(size, name, entry)
        self._add(
            cost,
            f"{name} {_shown(pattern)} expands to {_shown(size.states)} states. Use shorter repetitions, or maxLength",
            entry,
        )

    def _check_text(
        self, text: str, name: str, *, grammar: bool = False, entry: _Entry | None = None
    ) -> Iterator[None]:
        """Add a regex or a grammar that is the whole structure, or part of a structural tag."""
        if entry is None:
            self._count_bytes(len(text))
        size = RegexSize()
        yield from measure(text, size, grammar=grammar)
        self._check_groups(size, name, entry)
        cost = PER_STATE * size.states + PER_LITERAL_BYTE * size.literals + self._repeats(size)
        self._add(cost, f"{name} expands to {_shown(size.states)} states. Use shorter repetitions", entry)

    @staticmethod
    def _repeats(size: RegexSize) -> float:
        return PER_WIDE_REPEAT * size.wide + PER_CLASS_REPEAT * size.classes

    def _check_groups(self, size: RegexSize, name: str, entry: _Entry | None) -> None:
        if size.groups > MAX_GROUPS:
            raise self._error(f"{name} has groups nested more than {MAX_GROUPS} levels deep", entry)

    def _check_literals(
        self, literals: Sequence[str], name: str, entry: _Entry | None = None, *, counted: bool = True
    ) -> Iterator[None]:
        """Add alternatives; equal beginnings of neighbors in their order are shared."""
        bounds = self._bounds
        if counted:
            self._choices += len(literals)
            if self._choices > bounds.max_choices:
                raise self._error(
                    f"{self._choices} choices are more than this model's bound of {bounds.max_choices}. Use fewer, or"
                    " a regex",
                    entry,
                )
        if entry is None:
            self._count_bytes(sum(map(len, literals)))
        size = sum(map(len, literals))
        own, before = 0, ""
        message = f"{name} has {len(literals)} values with {size} characters. Use fewer or shorter ones"
        self._add(PER_CHOICE * len(literals) + PER_SHARED_BYTE_SQUARED * size**2, message, entry)
        for number, literal in enumerate(sorted(literals)):
            if number % STEP_CHOICES == 0:
                yield
            own += len(literal) - _shared(before, literal)
            before = literal
        self._add(PER_LITERAL_BYTE * own, message, entry)

    def _count_bytes(self, count: int) -> None:
        self._bytes += count
        if self._bytes > self._bounds.max_bytes:
            raise self._error(f"is larger than this model's bound of {self._bounds.max_bytes} bytes")

    def _add(self, states: float, what: str, entry: _Entry | None) -> None:
        self.states += states
        if self.states > self._bounds.max_states:
            raise self._error(
                f"{what} (estimated states {_shown(self.states)}, this model's bound is {self._bounds.max_states})",
                entry,
            )

    def _error(self, what: str, entry: _Entry | None = None) -> InvalidRequest:
        place = ""
        while entry is not None and (entry.parent is not None or isinstance(entry.key, int)):
            place = f"[{entry.key}]{place}" if isinstance(entry.key, int) else f".{entry.key[:64]}{place}"
            entry = entry.parent
        return InvalidRequest(f"{self._param}{place[-512:]}: {what}.", param=self._param)


def structure_steps(
    request: GenerateRequest, bounds: StructureBounds, *, all_tools: bool = False, lazy_strings: bool = False
) -> Iterator[float]:
    """Check what an engine compiles for a request; yields the estimated states so far between steps.

    The parameters of tools are compiled if the model must call one, or if they are strict; with `all_tools`, always.
    With `lazy_strings`, lengths and patterns in schemas are not counted: llguidance compiles them as needed.

    Raises:
        InvalidRequest: a bound is exceeded. `param` is `structured_outputs` or `tools`.
    """
    if request.structured_outputs is not None:
        size = StructureSize(bounds, "structured_outputs", lazy_strings=lazy_strings)
        for _ in size.check(request.structured_outputs):
            yield size.states
        yield size.states
    chat = request.chat
    if chat is None or not chat.tools or chat.tool_choice == "none":
        return
    size = StructureSize(bounds, "tools", lazy_strings=lazy_strings)
    named = chat.tool_choice["name"] if isinstance(chat.tool_choice, dict) else None
    compiled = all_tools or chat.tool_choice == "required" or named is not None
    for number, tool in enumerate(chat.tools):
        function = tool.function
        if named not in (None, function.name) or not (compiled or function.strict):
            continue
        if function.parameters is not None:
            for _ in size.check_schema(function.parameters, number):
                yield size.states
    yield size.states


def _children(parent: _Entry, items: Iterable[tuple[str | int, Any]]) -> Iterator[_Entry]:
    return (_Entry(child, key, parent, parent.depth + 1) for key, child in items)


def _unsupported(node: dict[str, Any]) -> str | None:
    """What a schema has that xgrammar does not support, if it is known to."""
    for name in UNSUPPORTED:
        if name in node:
            return name
    if ("pattern" in node or "format" in node) and ("minLength" in node or "maxLength" in node):
        return "minLength or maxLength of a string with a pattern or format"
    if isinstance(node.get("format"), str) and node["format"] not in FORMATS:
        return f"format {node['format'][:32]!r}"
    if isinstance(node.get("allOf"), list) and len(node["allOf"]) > 1:
        return "allOf"
    pattern = node.get("pattern")
    if isinstance(pattern, str) and _UNSUPPORTED_PATTERN.search(pattern):
        return "a pattern with look-around, word boundaries or Unicode classes"
    return None


def _count(value: Any) -> float:
    """A count in a schema; 0 if it is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return max(0.0, float(min(value, 1e15)))


def _shared(first: str, second: str) -> int:
    """The length of the common beginning."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[:middle] == second[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _shown(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "infinitely many"
    text = str(value)
    if isinstance(value, float):
        text = f"{value:,.0f}" if value < 1e9 else f"{value:.2g}"
    return text if len(text) <= 64 else f"{text[:61]}..."
